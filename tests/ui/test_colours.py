"""Contrast of the colours of the page, read from its style sheet."""

import re

import pytest

from tests.support.server import ROOT

SHEET = (ROOT / "kvd" / "ui" / "app.css").read_text()

# What is written on what, in `kvd/ui/app.css`.
TEXTS = [
    *(
        (text, ground)
        for text in ("text", "text-2")
        for ground in ("bg", "bg-over", "bg-2", "bg-3", "bg-hover", "bg-sel")
    ),
    *(("text-3", ground) for ground in ("bg", "bg-over", "bg-2")),
    *(("accent", ground) for ground in ("bg", "bg-over", "bg-2")),
    *((kind, f"{kind}-bg") for kind in ("ok", "warn", "bad", "info", "plum")),
    *((kind, ground) for kind in ("ok", "warn", "bad") for ground in ("bg", "bg-over", "bg-2")),
    *(("text", ground) for ground in ("add-bg", "add-in", "del-bg", "del-in")),
    *(("text-2", ground) for ground in ("add-bg", "del-bg")),
    ("ok", "add-bg"),
    ("bad", "del-bg"),
    *((f"syn-{kind}", "bg") for kind in ("key", "str", "num", "lit")),
    ("on-accent", "accent"),
    ("on-accent", "accent-hover"),
    ("bg", "bad"),
]
# Fields, the focus and the lines of plots are no texts.
SHAPES = [
    *(("line-ctl", ground) for ground in ("bg", "bg-2", "bg-over")),
    *(("accent", ground) for ground in ("bg", "bg-2", "bg-sel")),
    *((f"plot-{number}", "bg") for number in (1, 2, 3, 4)),
]


def tokens(theme: str) -> dict[str, str]:
    block = re.search(rf'\[data-theme="{theme}"\] \{{(.*?)\}}', SHEET, re.S)
    assert block is not None
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block[1]))


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_can_be_read(theme):
    colours = tokens(theme)
    found = {pair: round(contrast(*(colours[name] for name in pair)), 2) for pair in TEXTS}
    assert {pair: ratio for pair, ratio in found.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_fields_and_the_focus_can_be_seen(theme):
    colours = tokens(theme)
    found = {pair: round(contrast(*(colours[name] for name in pair)), 2) for pair in SHAPES}
    assert {pair: ratio for pair, ratio in found.items() if ratio < 3} == {}


def test_both_themes_have_each_colour():
    assert tokens("light").keys() == tokens("dark").keys()


def test_colours_are_tokens():
    rules = re.sub(r'\[data-theme="\w+"\] \{.*?\}', "", SHEET, flags=re.S)
    assert set(re.findall(r"#[0-9a-f]{3,6}\b", rules)) == {"#3550d0", "#fff"}  # the mark
