"""Parsing for tests of kvd.v2: a request at once, or a refusal."""

from typing import Any

import pytest

from kvd.v2.errors import TABLE, ApiError
from kvd.v2.request import parse

METHODS = ["GET", "HEAD", "PUT", "POST", "DELETE"]
KEY = b"/k"
UINT_MAX = 2**64 - 1

TRUE = ["1", "t", "T", "TRUE", "true", "True"]
FALSE = ["0", "f", "F", "FALSE", "false", "False"]
NO_BOOLS = ["", "yes", "no", "on", "tRUE", "2", "01", "true ", " true", "\u0661"]
NO_NUMBERS = ["-1", "+1", "1.0", "0x10", "1_000", " 1", "1 ", "1e3", "\u0661", "x"]
TOO_LARGE = [str(UINT_MAX + 1), "9" * 21, "1" + "0" * 100]


def ask(method: str = "PUT", query: str | bytes = "", form: str | bytes = "") -> Any:
    """The command of a request, without whether it wants values."""
    return refused_or_parsed(method, query, form)[0]


def refused_or_parsed(method: str, query: str | bytes, form: str | bytes = "") -> Any:
    query = query.encode() if isinstance(query, str) else query
    form = form.encode() if isinstance(form, str) else form
    return parse(method, KEY, query, form)


def refusal(method: str, query: str | bytes = "", form: str | bytes = "") -> tuple[int, str]:
    """Code and cause of the error, which never tells an index."""
    with pytest.raises(ApiError) as caught:
        refused_or_parsed(method, query, form)
    assert caught.value.index == 0
    assert TABLE[caught.value.code].status == 400
    return caught.value.code, caught.value.cause.decode()


BOOLS = ["recursive", "sorted", "wait", "dir", "quorum", "stream", "noValueOnSuccess",
         "prevExist", "refresh"]  # fmt: skip
