"""Parsed header blocks are kept, by their bytes; those with a password not for long."""

from kvd.http.parsing.header_cache import HeaderCache

PLAIN = b"Host: h\r\n"
SECRET = b"Host: h\r\nAuthorization: Basic YWw6c2VjcmV0\r\n"


def test_blocks_with_a_password_are_kept_for_a_minute_only():
    blocks = HeaderCache(lambda block: False)
    blocks.tick(1000.0)
    parsed = [blocks.parse(raw) for raw in (PLAIN, SECRET)]
    blocks.tick(1059.0)
    assert [blocks.parse(raw) for raw in (PLAIN, SECRET)] == parsed
    assert blocks.parse(SECRET) is parsed[1]
    blocks.tick(1061.0)
    assert blocks.parsed.keys() == {PLAIN}
    assert blocks.short.keys() == {PLAIN[:-2]}
    assert blocks.parse(SECRET) == parsed[1]
    assert blocks.parse(PLAIN) is parsed[0]


def test_what_goes_the_short_way_is_asked_once_for_each_block():
    asked = []

    def short_way(block):
        asked.append(block.headers["Host"])
        return None if block.headers["Host"] == "other" else block.content_type == "form"

    blocks = HeaderCache(short_way, short_bytes_max=64)
    form = b"Host: f\r\nContent-Type: form\r\nContent-Length: 7\r\n"
    long = b"Host: long\r\nX: " + b"x" * 64 + b"\r\n"
    chunked = b"Host: c\r\nTransfer-Encoding: chunked\r\n"
    for raw in (PLAIN, form, b"Host: other\r\n", PLAIN, long, chunked, b"X: no host\r\n"):
        blocks.parse(raw)
    assert asked == ["h", "f", "other"]
    assert blocks.short == {PLAIN[:-2]: (0, False), form[:-2]: (7, True)}


def test_after_a_stop_none_is_kept():
    blocks = HeaderCache(lambda block: False)
    blocks.parse(PLAIN)
    blocks.stop()
    assert blocks.parsed == blocks.short == {}
    blocks.parse(PLAIN)
    assert blocks.parsed == blocks.short == {}


def test_what_is_kept_is_bounded():
    blocks = HeaderCache(lambda block: False)
    for n in range(30_000):
        blocks.parse(b"Host: h%d\r\n" % n)
    blocks.parse(b"Host: h\r\nX: " + b"x" * 5000 + b"\r\n")
    assert 0 < len(blocks.parsed) < 25_000
    assert all(len(raw) < 5_000 for raw in blocks.parsed)
    assert blocks.short.keys() == {raw[:-2] for raw in blocks.parsed}
