"""Plays the scripts of tests/golden/engine: the log's bytes, recovery, watches."""

import pytest

from tests.golden.scripts import SCRIPTS, TEXTS, play, text_of

ADVICE = """what comes of {path} has changed.

If the change is meant, renew the texts with

    .venv/bin/python -m tests.golden.scripts --renew

and commit them with the change. A directory that an older version wrote must still open: a new
format needs a store in tests/golden/stores, too.
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_engine_does_what_its_script_says(name):
    expected = text_of(name).read_text()
    assert play(name, expected) == expected, ADVICE.format(path=text_of(name))


def test_each_text_is_played():
    assert {path.stem for path in TEXTS.iterdir()} == SCRIPTS.keys()
