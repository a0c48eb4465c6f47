"""JSON strings as Go's encoder writes them, whole and in pieces."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvd.json_text import cut, escape

SHORT = {0x22: b'\\"', 0x5C: b"\\\\", 0x0A: b"\\n", 0x0D: b"\\r", 0x09: b"\\t"}


def slow_escape(raw: bytes) -> bytes:
    """What `escape` must return, one character after the other."""
    escaped = b""
    position = 0
    while position < len(raw):
        for length in range(1, 5):
            piece = raw[position : position + length]
            try:
                character = piece.decode()
            except UnicodeDecodeError:
                continue
            position += len(piece)
            escaped += slow_escape_of(ord(character), piece)
            break
        else:
            position += 1
            escaped += b"\\ufffd"
    return escaped


def slow_escape_of(code: int, piece: bytes) -> bytes:
    if code in SHORT:
        return SHORT[code]
    if code < 0x20 or code in (0x3C, 0x3E, 0x26, 0x2028, 0x2029):
        return b"\\u%04x" % code
    return piece


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_is_escaped_as_go_does(byte):
    raw = bytes((byte,))
    assert escape(raw) == slow_escape(raw)
    assert escape(b"a" + raw + b"z") == slow_escape(b"a" + raw + b"z")
    assert escape(raw + "ü\u2028".encode()) == slow_escape(raw + "ü\u2028".encode())


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        (b"/a/b", b"/a/b"),
        (b"<a href='x'>&amp;</a>", rb"\u003ca href='x'\u003e\u0026amp;\u003c/a\u003e"),
        (b'"\\', rb"\"\\"),
        (b"\b\f\n\r\t\v\0\x1f\x7f", b"\\u0008\\u000c\\n\\r\\t\\u000b\\u0000\\u001f\x7f"),
        ("\u2027\u2028\u2029\u202a".encode(), "\u2027\\u2028\\u2029\u202a".encode()),
        ("\ufffd".encode(), "\ufffd".encode()),
        ("€\U0001f600".encode(), "€\U0001f600".encode()),
        (b"\xff\xfe", rb"\ufffd\ufffd"),
        (b"\xed\xa0\x80", rb"\ufffd\ufffd\ufffd"),  # a surrogate
        (b"\xc0\xaf", rb"\ufffd\ufffd"),  # overlong
        (b"\xf4\x90\x80\x80", rb"\ufffd\ufffd\ufffd\ufffd"),  # too large
        (b"\xe2\x82", rb"\ufffd\ufffd"),  # truncated
        (b"\xf0\xe2\x80\xa8", rb"\ufffd\u2028"),
        (b"\\\xff", rb"\\\ufffd"),
        (b"\\ufffd", rb"\\ufffd"),
    ],
)
def test_escapes(raw, escaped):
    assert escape(raw) == escaped


HARD = st.lists(
    st.one_of(
        st.binary(max_size=4),
        st.text(max_size=3).map(str.encode),
        st.sampled_from(
            [b"\xe2\x80\xa8", b"\xe2\x80", b"\xa8", b"\xed\xa0\x80", b"\xf0\x9f", b"\\"]
        ),
    ),
    max_size=12,
).map(b"".join)


@given(HARD)
@example(b"\xf0\x9f\x98\x80\xf0\x9f\x98")
def test_any_bytes_are_escaped_as_go_does(raw):
    assert escape(raw) == slow_escape(raw)


@given(st.text())
def test_text_survives_json(text):
    assert json.loads(b'"' + escape(text.encode()) + b'"') == text


@pytest.mark.parametrize(
    "raw", [b"", b"a", "é€\U0001f600".encode() * 3, b"\x80" * 9 + b"a", b"a" + b"\x80" * 9]
)
def test_bytes_are_cut_between_characters_at_any_place(raw):
    for end in range(len(raw) + 2):
        place = cut(raw, end)
        assert max(0, min(end, len(raw)) - 3) <= place <= min(end, len(raw))
        assert escape(raw[:place]) + escape(raw[place:]) == escape(raw)
