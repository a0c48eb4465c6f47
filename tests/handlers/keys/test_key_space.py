"""The key space: the cost of a request besides its answer."""

import threading

import pytest

from bench.cost.in_process import Inside
from kvd.storage.format.node import decode_node


@pytest.fixture
def decoded():
    """The calls of `decode_node` on all threads that start during the test."""
    calls = []

    def note(frame, event, _argument):
        if event == "call" and frame.f_code is decode_node.__code__:
            calls.append(frame.f_locals["key"])

    threading.setprofile(note)
    yield calls
    threading.setprofile(None)


@pytest.mark.parametrize("query", ["", "?quorum=true"])
def test_a_listing_decodes_the_row_of_its_directory_once(decoded, tmp_path, query):
    with Inside(tmp_path / "data") as kvd:
        for name in ("a", "b", "c"):
            kvd.request("PUT", f"/v2/keys/d/{name}", b"value=1")
        counts = []
        for _ in ("rendered", "cached"):
            kvd.flush()
            decoded.clear()
            kvd.request("GET", f"/v2/keys/d{query}")
            counts.append(len(decoded))
    assert counts == [1 + 3, 1]
