"""Chunked bodies, as bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.http.parsing.chunked import Chunks

HOST = b"Host: h\r\n"


def feed(pieces: list[bytes]) -> tuple[bytes, bytes, bool]:
    """Content, what is left over behind the body, and whether the body is complete."""
    chunks = Chunks()
    content = waiting = b""
    for piece in pieces:
        data, waiting = chunks.feed(waiting + piece)
        content += data
        while chunks.has_more:
            data, waiting = chunks.feed(waiting)
            content += data
    return content, waiting, chunks.complete


def both_ways(raw: bytes) -> tuple[bytes, bytes, bool]:
    """The same, and it must not matter how the bytes arrive."""
    found = feed([raw])
    assert feed([raw[i : i + 1] for i in range(len(raw))]) == found
    return found


@pytest.mark.parametrize(
    ("raw", "content"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!"),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"a\r\n0123456789\r\n000\r\n\r\n", b"0123456789"),
        (b"3 \t\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b'3;name="va;lue"\r\nabc\r\n0;last\r\n\r\n', b"abc"),
        (b"3\r\nabc\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n", b"abc"),
        (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    ],
)
def test_a_chunked_body(raw, content):
    assert both_ways(raw) == (content, b"", True)
    assert both_ways(raw + b"GET / HTTP/1.1\r\n") == (content, b"GET / HTTP/1.1\r\n", True)


@pytest.mark.parametrize("split", range(1, 42))
def test_a_chunked_body_split_anywhere(split):
    raw = b"5;x\r\nhello\r\nb\r\n, you there\r\n0\r\nT: v\r\n\r\nGET"
    assert feed([raw[:split], raw[split:]]) == (b"hello, you there", b"GET", True)


@pytest.mark.parametrize("length", range(1, 20))
def test_a_body_without_its_end_is_not_complete(length):
    raw = b"5\r\nhello\r\n0\r\nT: v\r\n\r\n"
    assert not both_ways(raw[:length])[2]


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b" 1\r\n",
        b"0x1\r\n",
        b"1_0\r\n",
        b"1,\r\n",
        b"1\n\r\n",
        b"\xd9\xa1\r\n",
        b"f" * 16 + b"\r\n",
        b"1;\n\r\nx",
        b"5\r\nhello!\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5\r\nhello\n\n0\r\n\r\n",
        b"5;" + b"x" * 5000,
        b"5" + b";x" * 5000 + b"\r\n",
        b"0\r\nT: " + b"x" * 5000,
        b"0\r\nT: a\nb\r\n",
        b"0\r\nT: a\rb\r\n",
        b"0\r\nT: \0\r\n",
        b"0\r\nT\r\n",
        b"0\r\nT : x\r\n",
        b"0\r\n T: x\r\n",
        b"0\r\n: x\r\n",
        b"0\r\nT: x\r\n folded\r\n",
        b"1;\0\r\nx",
        b"0\r\n" + b"T: x\r\n" * 2000,
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_a_malformed_body_is_refused(raw):
    for pieces in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
        with pytest.raises(ValueError, match=r"chunk|line|trailer"):
            feed(pieces)


@given(st.lists(st.binary(min_size=1)), st.binary(), st.data())
def test_any_content_survives_any_split(parts, behind, data):
    raw = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n" + behind
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=5)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert feed(pieces) == (b"".join(parts), behind, True)
