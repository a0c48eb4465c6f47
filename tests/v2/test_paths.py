"""Paths: decoded and cleaned as net/http does, and the keys that they address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.v2.paths import BadEscape, clean_path, decode_path, encode_path, key_of

# Section 1.4: paths.
CLEANED = [
    ("/v2/keys//hd", "/v2/keys/hd"),
    ("/v2/keys/./hd", "/v2/keys/hd"),
    ("/v2/keys/a/../hd", "/v2/keys/hd"),
    ("/v2/keys/..", "/v2"),
    ("/v2/keys/../stats/store", "/v2/stats/store"),
    ("//v2/keys/x", "/v2/keys/x"),
    ("/v2/keys/a//", "/v2/keys/a/"),
    ("/v2/keys/a/..", "/v2/keys"),
    ("/v2/keys/a/../", "/v2/keys/"),
    ("/v2/keys/.", "/v2/keys"),
    ("/v2/keys/./", "/v2/keys/"),
    ("/../..", "/"),
    ("/../../a", "/a"),
    ("/..", "/"),
    ("//", "/"),
    ("/.", "/"),
    ("", "/"),
    ("///a///b///", "/a/b/"),
    ("/a/./b/../../c/", "/c/"),
]


CLEAN = ["/", "/a", "/a/", "/a/...", "/a/..a", "/a/.a", "/a/b.", "/a/b..", "/...", "/a b", "/\xff"]


@pytest.mark.parametrize(("path", "cleaned"), CLEANED)
def test_a_path_is_cleaned(path, cleaned):
    assert clean_path(path.encode()) == cleaned.encode()


@pytest.mark.parametrize("path", CLEAN)
def test_a_clean_path_stays(path):
    assert clean_path(path.encode()) == path.encode()


@given(st.lists(st.sampled_from(["", ".", "..", "...", "a", ".b"])))
def test_a_cleaned_path_is_clean(names):
    cleaned = clean_path(("/" + "/".join(names)).encode())
    assert clean_path(cleaned) == cleaned
    assert cleaned.startswith(b"/")
    assert b"//" not in cleaned
    assert not {b".", b".."} & set(cleaned.split(b"/"))


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/v2/keys/a%2Fb", b"/v2/keys/a/b"),
        (b"/v2/keys/a%2f%2fb", b"/v2/keys/a//b"),
        (b"/v2/keys/%2e%2E", b"/v2/keys/.."),
        (b"/%76%32/keys/e", b"/v2/keys/e"),
        (b"/%3F%23%20+%00", b"/?# +\0"),
        (b"/%ff\xfe", b"/\xff\xfe"),
        (b"/a%252F", b"/a%2F"),
    ],
)
def test_a_path_is_decoded(raw, path):
    assert decode_path(raw) == path


@pytest.mark.parametrize("raw", [b"/%", b"/%z", b"/%zz", b"/%1", b"/%1/", b"/%%41", b"/%+1"])
def test_a_bad_escape_in_a_path_is_refused(raw):
    with pytest.raises(BadEscape):
        decode_path(raw)


def test_a_location_is_escaped_as_go_does():
    assert encode_path(b"/a-._~$&+,:;=@") == "/a-._~$&+,:;=@"
    assert encode_path(b"/\xff\"<>'#{}|\\^`[]!*() ?%\0") == (
        "/%FF%22%3C%3E%27%23%7B%7D%7C%5C%5E%60%5B%5D%21%2A%28%29%20%3F%25%00"
    )


@given(st.binary())
def test_a_location_leads_to_its_path(path):
    assert decode_path(encode_path(path).encode()) == path


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (b"/v2/keys", b"/"),
        (b"/v2/keys/", b"/"),
        (b"/v2/keys/a", b"/a"),
        (b"/v2/keys/a/", b"/a"),
        (b"/v2/keys/a/b c", b"/a/b c"),
        (b"/v2/keysfoo", None),
        (b"/v2/key", None),
        (b"/v2", None),
        (b"/", None),
        (b"/V2/keys/a", None),
        (b"/v2/stats/store", None),
    ],
)
def test_the_key_that_a_path_addresses(path, key):
    assert key_of(path) == key


@given(st.binary(max_size=40))
def test_any_path_is_decoded_or_refused(raw):
    try:
        path = decode_path(b"/" + raw)
    except BadEscape:
        assert b"%" in raw
    else:
        key_of(clean_path(path))
