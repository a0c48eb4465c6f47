"""Parsed header blocks are kept, by their bytes; those with a password not for long."""

from kvd.blocks import Blocks

PLAIN = b"Host: h\r\n"
SECRET = b"Host: h\r\nAuthorization: Basic YWw6c2VjcmV0\r\n"


def test_blocks_with_a_password_are_kept_for_a_minute_only():
    blocks = Blocks(lambda headers: True)
    blocks.tick(1000.0)
    parsed = [blocks.parse(raw) for raw in (PLAIN, SECRET)]
    blocks.tick(1059.0)
    assert [blocks.parse(raw) for raw in (PLAIN, SECRET)] == parsed
    assert blocks.parse(SECRET) is parsed[1]
    blocks.tick(1061.0)
    assert blocks.parsed.keys() == {PLAIN}
    assert blocks.parse(SECRET) == parsed[1]
    assert blocks.parse(PLAIN) is parsed[0]


def test_only_usual_blocks_are_sized():
    asked = []

    def is_usual(headers):
        asked.append(headers["Host"])
        return headers["Host"] == "h"

    blocks = Blocks(is_usual)
    unusual = b"Host: other\r\n"
    assert [blocks.parse(raw).is_sized for raw in (PLAIN, unusual, PLAIN)] == [True, False, True]
    assert asked == ["h", "other"]


def test_after_a_stop_none_is_kept():
    blocks = Blocks(lambda headers: True)
    blocks.parse(PLAIN)
    blocks.stop()
    assert not blocks.parsed
    blocks.parse(PLAIN)
    assert not blocks.parsed


def test_what_is_kept_is_bounded():
    blocks = Blocks(lambda headers: True)
    for n in range(30_000):
        blocks.parse(b"Host: h%d\r\n" % n)
    blocks.parse(b"Host: h\r\nX: " + b"x" * 5000 + b"\r\n")
    assert 0 < len(blocks.parsed) < 25_000
    assert all(len(raw) < 5_000 for raw in blocks.parsed)
