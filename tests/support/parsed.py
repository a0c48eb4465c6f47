"""Steps of a request parser, and their results."""

from dataclasses import dataclass, field

from kvd.http.parsing.header_cache import HeaderCache
from kvd.http.parsing.request_parser import (
    Refusal,
    Request,
    RequestParser,
)

LIMIT = 1 << 10
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
PUT = b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 7\r\n\r\nvalue=1"
CHUNKED = b"PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"3\r\nval\r\n4;x\r\nue=1\r\n0\r\nT: v\r\n\r\n"
EVIL = b"GET /evil HTTP/1.1\r\nHost: h\r\n\r\n"


@dataclass
class Parsed:
    """Result of parsing some bytes."""

    requests: list[tuple[str, bytes]] = field(default_factory=list)
    """The request lines as they were understood, and the bodies as far as they have come."""
    heads: list[Request] = field(default_factory=list)
    whole: int = 0
    """How many requests were taken whole."""
    refusal: Refusal | None = None
    is_complete: bool = True
    """Whether the last request has come to its end."""


def parse(*pieces: bytes, limit: int = LIMIT, blocks: HeaderCache | None = None) -> Parsed:
    """Feed the pieces one by one, and take after each what there is."""
    parser = RequestParser(blocks or new_blocks(), limit)
    parsed = Parsed()
    for piece in pieces:
        parser.feed(piece)
        while parser.buffer and parsed.refusal is None and take(parser, parsed):
            pass
    parsed.is_complete = not parser.buffer and not parser.body_left
    return parsed


def new_blocks() -> HeaderCache:
    """A cache of header blocks whose requests may all be taken whole."""
    return HeaderCache(lambda block: False)


def take(parser: RequestParser, parsed: Parsed) -> bool:
    """Take what comes next; whether there may be more."""
    if parser.body_left:
        piece = parser.read_body()
        if isinstance(piece, Refusal):
            parsed.refusal = piece
            return False
        line, body = parsed.requests.pop()
        parsed.requests.append((line, body + piece))
        return not parser.body_left or parser.has_more
    whole = parser.take_whole()
    if whole is not None:
        head, _, body = whole.partition(b"\r\n\r\n")
        parsed.whole += 1
        parsed.requests.append((head.partition(b"\r\n")[0].decode("latin-1"), body))
        return True
    found = parser.find_head()
    request = parser.take_head() if found is True else found
    if isinstance(request, Request):
        parsed.heads.append(request)
        request_line = f"{request.method} {request.target} HTTP/1.{0 if request.http10 else 1}"
        parsed.requests.append((request_line, b""))
        parsed.refusal = request.refusal
        return True
    parsed.refusal = request or None
    return False


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]
