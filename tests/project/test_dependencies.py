"""The behaviour of dependencies that kvd relies on, tried without kvd.

test_packaging.py runs this, and tests of kvd, on the lower bounds of pyproject.toml.
"""

import subprocess
import sys
import tracemalloc

import httptools
import pytest
from tornado.escape import parse_qs_bytes

HOST = b"POST / HTTP/1.1\r\nHost: h\r\n"


def taken(block: bytes) -> bool:
    try:
        httptools.HttpRequestParser(object()).feed_data(HOST + block + b"\r\n")
    except httptools.HttpParserError:
        return False
    return True


def test_llhttp_takes_a_good_block():
    assert taken(b"Content-Length: 0\r\nA: b\r\n")


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"Transfer-Encoding:\r\n", id="an empty coding"),
        pytest.param(b"A: b\r\n Content-Length: 3\r\n", id="folded"),
        pytest.param(b" Content-Length: 3\r\n", id="a blank before the name"),
        pytest.param(b"A: b\r\n\n\n", id="bare LF"),
        pytest.param(b"A: b\rTransfer-Encoding: chunked\r\n", id="bare CR"),
        pytest.param(b"A: \0\r\n", id="NUL"),
        pytest.param(b"Content-Length: 3\r\nContent-Length: 3\r\n", id="two lengths"),
        pytest.param(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", id="both"),
    ],
)
def test_llhttp_refuses_a_malformed_block(block):
    assert not taken(block)


def test_tornado_decodes_a_query_in_a_few_times_its_size():
    query = b"a=" + b"%41" * 100_000
    tracemalloc.start()
    try:
        assert parse_qs_bytes(query) == {"a": [b"A" * 100_000]}
        assert tracemalloc.get_traced_memory()[1] < 20 * len(query)
    finally:
        tracemalloc.stop()


TAG_OF_ITSELF = bytes.fromhex("d81cc6d81d00")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        pytest.param("loads(b'\\x81' * 200_000)", "CBORDecodeError", id="deep lists"),
        pytest.param("loads(b'\\xc6' * 200_000)", "CBORDecodeError", id="deep tags"),
        pytest.param(
            f"loads(b'\\xa1' + {TAG_OF_ITSELF} + b'\\x00')", "CBORDecodeError", id="cyclic key"
        ),
        pytest.param(f"dumps(loads({TAG_OF_ITSELF}))", "CBOREncodeError", id="cyclic tag"),
        pytest.param("loads(b'\\x7b\\x7f' + b'\\xff' * 7)", "CBORDecodeError", id="long text"),
    ],
)
def test_cbor2_refuses_hostile_bytes_by_its_own_error(call, error):
    # In a process of its own: a version that is too old may end it.
    code = f"from cbor2 import *\ntry:\n    {call}\nexcept {error}:\n    print('refused')"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "refused\n"), ended.stderr[-1000:]
