"""What a run of the laboratory leaves: a document that its schema describes, and a page."""

import copy
import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.crash.lab import EXPERIMENTS
from tests.crash.lab.__main__ import Report, main
from tests.crash.lab.experiment import Trial, counted
from tests.crash.lab.report.conditions import conditions
from tests.crash.lab.report.document import document, objection
from tests.crash.lab.report.page import page
from tests.crash.lab.report.plots import plot


@pytest.fixture
def found(tmp_path) -> dict[str, Any]:
    trial = Trial(tmp_path, 1, 3)
    for size in (1000, 3000, 9000):
        for turn in range(3):
            axes = ("records", "s")
            trial.point("restart", "reused", size, 0.1 + turn / 100, axes=axes)
            trial.point("restart", "rebuilt", size, size / 1e4 + turn / 100, axes=axes)
    trial.sample("ready <after> a kill", 0.25)
    trial.set_samples("GET", [number / 1e5 for number in range(1, 1001)])
    trial.set_samples("none", [])
    report = Report(
        "slow", "a < b", None, 1, 3, "rounds", "scripts/crashlab run slow", "held", "<b>"
    )
    report.figures["lost"] = 0
    report.distributions, report.plots = trial.distributions, trial.plots
    return json.loads(json.dumps(document(conditions(tmp_path), [asdict(report)])))


class Visitor(HTMLParser):
    """Keeps texts, and the tags that are open: each must be closed by its own."""

    VOID = frozenset(("meta", "circle", "path", "rect", "polyline"))
    OMITTED = frozenset(("td", "th"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in self.VOID | self.OMITTED:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def visit(html: str) -> Visitor:
    visitor = Visitor()
    visitor.feed(html)
    visitor.close()
    assert visitor.open == []
    return visitor


def test_a_document_names_its_conditions(found):
    assert objection(found) == ""
    assert found["conditions"]["system"]["kernel"].startswith("Linux ")
    assert found["conditions"]["file_system"]["type"]
    assert found["conditions"]["machine"]["memory_bytes"] > 1 << 20


def lacks_a_seed(found: dict[str, Any]) -> None:
    del found["experiments"][0]["seed"]


def has_another_verdict(found: dict[str, Any]) -> None:
    found["experiments"][0]["verdict"] = "well"


def has_a_text_for_a_number(found: dict[str, Any]) -> None:
    found["experiments"][0]["distributions"]["GET"]["values"][3] = "1 ms"


def has_a_point_of_three(found: dict[str, Any]) -> None:
    found["experiments"][0]["plots"]["restart"]["lines"]["reused"][0].append(1)


def is_of_another_version(found: dict[str, Any]) -> None:
    found["schema"] = "kvd-crashlab/9"


@pytest.mark.parametrize(
    "harm",
    [
        lacks_a_seed,
        has_another_verdict,
        has_a_text_for_a_number,
        has_a_point_of_three,
        is_of_another_version,
    ],
)
def test_what_the_schema_does_not_describe_is_refused(found, tmp_path, capsys, harm):
    harmed = copy.deepcopy(found)
    harm(harmed)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(harmed))
    assert main(["page", str(path)]) == 2
    assert "results.json is not a kvd-crashlab/1 document: the document" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_file_of_another_kind_is_refused(tmp_path, capsys, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    assert main(["page", str(path)]) == 2
    assert capsys.readouterr().err.startswith("crashlab: ")
    assert main(["page", str(tmp_path / "missing.json")]) == 2


def test_the_page_draws_what_was_measured_and_escapes_its_texts(found):
    visitor = visit(page([found]))
    assert visitor.tags.count("polyline") == 2
    assert visitor.tags.count("figure") == 1
    # 18 points, one value alone, and at most 250 dots of a distribution.
    assert visitor.tags.count("circle") == 18 + 1 + 250
    texts = "".join(visitor.texts)
    for text in ("A < b.", "<b>", "ready <after> a kill", "2.51 ms", "250 ms"):
        assert text in texts


def test_the_page_is_whole_by_itself_and_has_both_themes(found):
    html = page([found, found])
    assert not re.search(r"(src|href)=.?(?!#)[\w/]", html)
    assert "http" not in html
    assert "prefers-color-scheme: dark" in html
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    for theme in html.partition("@media (prefers-color-scheme: dark)")[::2]:
        assert used - set(re.findall(r"(--[\w-]+):", theme)) - {"--font", "--mono"} == set()


@pytest.mark.parametrize("x", [0, 5, 7e5])
@pytest.mark.parametrize("y", [0, 1e-6, 3, 9e9])
def test_a_plot_of_equal_measurements_can_be_drawn(x, y):
    svg = plot("same", "x", "y", {"one": [(x, y), (x, y)]})
    assert "nan" not in svg
    visit(svg)


def test_the_page_of_no_experiment_can_be_read(tmp_path):
    visit(page([document(conditions(tmp_path), [])]))


def test_one_round_is_in_the_singular():
    units = {experiment.unit for experiment in EXPERIMENTS.values()} | {"rounds"}
    ones = {counted(1, unit) for unit in units}
    assert {
        *("1 delay", "1 index", "1 history", "1 end of the process", "1 length of log"),
        *("1 failed sync", "1 power cut", "1 round"),
    } <= ones
    assert not ones & {f"1 {unit}" for unit in units}
    assert {counted(1000, unit) for unit in units} == {f"1,000 {unit}" for unit in units}
