"""The report of a replica, as the engine keeps it."""

import json

import pytest

from kvd.replicas.upkeep.report import Report, decode, encode

REPORT = Report(
    "h1", "http://h1:2380", ("http://h1:2379",), "following", 26503, 26440, "1.4.0", 2, 17 * 10**17
)


def test_a_report_is_read_as_it_was_written():
    assert decode(encode(REPORT)) == REPORT
    assert decode(encode(REPORT._replace(durable=None))).durable is None


def test_members_of_later_versions_are_ignored():
    document = json.loads(encode(REPORT)) | {"later": [1]}
    assert decode(json.dumps(document).encode()) == REPORT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"7",
        b"null",
        b"[" * 100_000,
        b"{}",
        encode(REPORT).replace(b'"h1"', b"7"),
        encode(REPORT).replace(b"26503", b"true"),
        encode(REPORT).replace(b"26440", b'"x"'),
        encode(REPORT).replace(b'["http://h1:2379"]', b"[7]"),
        encode(REPORT).replace(b'"applied"', b'"aplied"'),
    ],
)
def test_anything_else_is_no_report(data):
    with pytest.raises(ValueError, match=r"."):
        decode(data)
