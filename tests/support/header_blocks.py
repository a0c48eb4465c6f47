"""Header blocks that differ from good ones in one place, and a reader of its own for them.

The reader is RFC 9110 section 5 and RFC 9112 sections 2.2, 5.2 and 6 as regular expressions: it
shares nothing with kvd or llhttp, so that a block that these take and it does not is a finding.
"""

import re
from collections.abc import Iterator

Fields = list[tuple[bytes, bytes]]

_FIELD = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*"
    rb"((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)
_TEXT = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_LENGTH = re.compile(rb"[0-9]{1,19}")
# kvd takes no folded line of these.
_NEVER_FOLDED = frozenset(
    b"authorization connection content-length content-type expect host origin sec-fetch-site "
    b"transfer-encoding upgrade".split()
)

_GOOD = [
    b"Host: h\r\nContent-Length: 12\r\nX-A: b c\r\n",
    b"Transfer-Encoding: chunked\r\nHost: h\r\n",
    b"A: b\r\nConnection: close, upgrade\r\nUpgrade: x\r\n",
    b"Connection: keep-alive\r\nA:\r\n",
    b"Connection: Upgrade\r\nProxy-Connection: x\r\nContent-Length:7\r\n",
    b"Transfer-Encoding:\r\n",
]
_INSERTED = [
    *(bytes([byte]) for byte in range(256)),
    *(b"\r\n", b"\r\n ", b"\r\n\t", b"\n ", b"\r ", b"\r\r\n", b"\n\n", b"\n\r", b", ", b"\0\0"),
    b"\r\nContent-Length: 12\r\n",
    b"\r\nTransfer-Encoding: chunked\r\n",
    b"\nTransfer-Encoding: chunked\r\n",
    b"\rTransfer-Encoding: chunked\r\n",
]


def nearly_good() -> Iterator[bytes]:
    """Good blocks with bytes inserted, replaced or removed at each place.

    Only such as a head can hold: it ends at its first empty line, and each line ends.
    """
    for good in _GOOD:
        for raw in _changed(good):
            if raw.endswith(b"\r\n") and b"\r\n\r\n" not in b"\r\n" + raw:
                yield raw


def _changed(good: bytes) -> Iterator[bytes]:
    yield good
    for place in range(len(good) + 1):
        before = good[:place]
        for inserted in _INSERTED:
            yield before + inserted + good[place:]
            yield before + inserted + good[place + 1 :]
        for removed in (1, 2, 3):
            yield before + good[place + removed :]


def read(raw: bytes) -> Fields | None:
    """Names in lower case with their values, sorted; none if the block is to be refused.

    How many blanks there are in a value is left open (RFC 9112 section 5.2).
    """
    fields: Fields = []
    for line in raw.removesuffix(b"\r\n").split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            more = line.strip(b" \t")
            if not fields or not _may_be_folded(fields[-1][0], more):
                return None
            name, value = fields.pop()
            fields.append((name, (value + b" " + more).strip(b" \t")))
            continue
        match = _FIELD.fullmatch(line)
        if match is None:
            return None
        fields.append((match[1].lower(), match[2]))
    return _framed(fields)


def _may_be_folded(name: bytes, more: bytes) -> bool:
    is_text = bool(more) and b":" not in more and _TEXT.fullmatch(more) is not None
    return is_text and name not in _NEVER_FOLDED


def _framed(fields: Fields) -> Fields | None:
    """Return the fields if they say in one way only where the body ends."""
    lengths = {field for field in fields if field[0] == b"content-length"}
    codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(value) for _, value in lengths):
        return None
    if codings and (lengths or codings != [b"chunked"]):
        return None
    once = [field for field in fields if field not in lengths] + list(lengths)
    return sorted((name, with_single_blanks(value)) for name, value in once)


def with_single_blanks(value: bytes) -> bytes:
    return re.sub(rb"[ \t]+", b" ", value)
