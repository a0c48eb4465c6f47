"""Parameters of requests: what they make of a command, or the first thing wrong with them."""

import itertools

import pytest

from kvd.v2.commands import (
    CompareAndDelete,
    CompareAndSwap,
    Create,
    CreateInOrder,
    Delete,
    Get,
    Set,
    Update,
    Watch,
)
from tests.support.requests import (
    BOOLS,
    FALSE,
    KEY,
    METHODS,
    NO_BOOLS,
    NO_NUMBERS,
    TOO_LARGE,
    TRUE,
    UINT_MAX,
    ask,
    refusal,
    refused_or_parsed,
)

# Section 2.5 of the recorded behaviour: each check, a parameter that fails it, and its answer, in
# the order in which they are made.
CHECKS = {
    "form": ("%zz", 210, 'invalid URL escape "%zz"'),
    "prevIndex": ("prevIndex=x", 203, 'invalid value for "prevIndex"'),
    "waitIndex": ("waitIndex=x", 203, 'invalid value for "waitIndex"'),
    "recursive": ("recursive=x", 209, 'invalid value for "recursive"'),
    "sorted": ("sorted=x", 209, 'invalid value for "sorted"'),
    "wait": ("wait=x", 209, 'invalid value for "wait"'),
    "dir": ("dir=x", 209, 'invalid value for "dir"'),
    "quorum": ("quorum=x", 209, 'invalid value for "quorum"'),
    "stream": ("stream=x", 209, 'invalid value for "stream"'),
    "wait on a write": ("wait=true", 209, '"wait" can only be used with GET requests'),
    "prevValue": ("prevValue=", 201, '"prevValue" cannot be empty'),
    "noValueOnSuccess": ("noValueOnSuccess=x", 209, 'invalid value for "noValueOnSuccess"'),
    "ttl": ("ttl=x", 202, 'invalid value for "ttl"'),
    "prevExist": ("prevExist=x", 209, "invalid value for prevExist"),
    "refresh": ("refresh=x", 209, "invalid value for refresh"),
    "refresh with a value": (
        "refresh=true&value=v", 211, "A value was provided on a refresh",
    ),
    "refresh without a ttl": ("refresh=true", 212, "No TTL value set"),
}  # fmt: skip
# Of one name there cannot be two kinds of error in one request.
EXCLUSIVE = [{"wait", "wait on a write"}, {"refresh", "refresh with a value"},
             {"refresh", "refresh without a ttl"}]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_is_checked_on_every_method(method, check):
    parameters, code, cause = CHECKS[check]
    if check == "wait on a write" and method == "GET":
        assert isinstance(ask(method, parameters), Watch)
    else:
        assert refusal(method, parameters) == (code, cause)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(first, second, id=f"{first} before {second}")
        for first, second in itertools.combinations(CHECKS, 2)
        if {first, second} not in EXCLUSIVE
    ],
)
def test_the_first_failing_check_answers(first, second):
    expected = CHECKS[first][1:]
    for pieces in itertools.permutations([CHECKS[first][0], CHECKS[second][0]]):
        assert refusal("PUT", "&".join(pieces)) == expected
        assert refusal("PUT", form="&".join(pieces)) == expected


@pytest.mark.parametrize("text", [*TRUE, *FALSE])
@pytest.mark.parametrize("name", BOOLS)
def test_go_s_booleans_are_understood(name, text):
    ask("GET", f"{name}={text}&ttl=1")


@pytest.mark.parametrize("text", NO_BOOLS)
@pytest.mark.parametrize("name", BOOLS)
def test_other_booleans_are_refused(name, text):
    quote = "" if name in ("prevExist", "refresh") else '"'
    expected = 209, f"invalid value for {quote}{name}{quote}"
    assert refusal("GET", f"{name}={text}".encode()) == expected


@pytest.mark.parametrize("text", ["0", "007", "1", str(UINT_MAX), "0" * 40 + "5"])
def test_indexes_are_64_bit_numbers(text):
    assert ask("GET", f"wait=true&waitIndex={text}").wait_index == int(text)
    if int(text):
        assert ask("DELETE", f"prevIndex={text}").prev_index == int(text)


@pytest.mark.parametrize("text", ["", *NO_NUMBERS, *TOO_LARGE])
@pytest.mark.parametrize("name", ["prevIndex", "waitIndex"])
def test_other_indexes_are_refused(name, text):
    escaped = text.replace("+", "%2B")
    assert refusal("PUT", f"{name}={escaped}") == (203, f'invalid value for "{name}"')


@pytest.mark.parametrize("text", ["0", "007", "1", str(UINT_MAX)])
def test_a_ttl_is_a_64_bit_number_of_seconds(text):
    assert ask(form=f"ttl={text}").ttl_s == int(text)


def test_an_empty_ttl_means_none():
    assert ask(form="ttl=") == Set(KEY, b"")
    assert ask(form="value=v&ttl=") == Set(KEY, b"v")


@pytest.mark.parametrize("text", [*NO_NUMBERS, *TOO_LARGE])
def test_other_ttls_are_refused(text):
    escaped = text.replace("+", "%2B")
    assert refusal("PUT", form=f"ttl={escaped}") == (202, 'invalid value for "ttl"')


# Section 2.3: what a form means, and what is wrong with it.
@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("", b""),
        ("value", b""),
        ("value=", b""),
        ("value=a=b=c", b"a=b=c"),
        ("value=a+b%2Bc", b"a b+c"),
        ("%76alue=1", b"1"),
        ("val%75e=%31", b"1"),
        ("value=%ff%00%C3%bc", b"\xff\0\xc3\xbc"),
        ("value=%0d%0a", b"\r\n"),
        ("&&value=x&&", b"x"),
        ("=v", b""),
        ("=&value=y", b"y"),
        ("value=1&value=2", b"1"),
        ("value=&value=2", b""),
        ("Value=x&VALUE=y", b""),
        ("value=%253B", b"%3B"),
        ("value=?/#\\", b"?/#\\"),
        (b"value=\xff\xfe\r\n", b"\xff\xfe\r\n"),
        ("unknown=%41&value=z", b"z"),
    ],
)
def test_a_form_is_decoded(form, value):
    assert ask(form=form) == Set(KEY, value)
    assert ask(query=form) == Set(KEY, value)


SEMICOLON = "invalid semicolon separator in query"


@pytest.mark.parametrize(
    ("form", "cause"),
    [
        ("a;b", SEMICOLON),
        ("value=1;dir=true", SEMICOLON),
        ("&&;", SEMICOLON),
        # Go reports the last semicolon rather than the first bad escape.
        ("a=%zz&b;c", SEMICOLON),
        ("a;b&c=%zz", SEMICOLON),
        ("value=%zz", 'invalid URL escape "%zz"'),
        ("value=%zzz", 'invalid URL escape "%zz"'),
        ("value=%", 'invalid URL escape "%"'),
        ("value=%a", 'invalid URL escape "%a"'),
        ("value=%%%", 'invalid URL escape "%%%"'),
        ("value=%20%4", 'invalid URL escape "%4"'),
        ("%zz=%yy", 'invalid URL escape "%zz"'),
        ("unknown=%zz&value=1", 'invalid URL escape "%zz"'),
        ("=%zz", 'invalid URL escape "%zz"'),
        ("a=%zz&b=%yy", 'invalid URL escape "%zz"'),
        ("value=%+1", 'invalid URL escape "%+1"'),
        # The quotes are Go's %q.
        ('value=%"a', r'invalid URL escape "%\"a"'),
        ("value=%\\\\", r'invalid URL escape "%\\\\"'),
        ("value=%\n\t", r'invalid URL escape "%\n\t"'),
        ("value=%\r\v", r'invalid URL escape "%\r\v"'),
        ("value=%\a\b", r'invalid URL escape "%\a\b"'),
        ("value=%\x7f\x01", r'invalid URL escape "%\x7f\x01"'),
        ("value=%\xe9", 'invalid URL escape "%\xe9"'),
        ("value=%\x80", r'invalid URL escape "%\u0080"'),
        ("value=%\u20ac", r'invalid URL escape "%\xe2\x82"'),
        (b"value=%\xff\xfe", r'invalid URL escape "%\xff\xfe"'),
        (b"value=%\\\xff", r'invalid URL escape "%\\\xff"'),
    ],
)
def test_a_malformed_form_is_refused(form, cause):
    assert refusal("PUT", form=form) == (210, cause)
    assert refusal("PUT", query=form) == (210, cause)


def test_the_body_comes_before_the_query():
    assert ask(query="value=q", form="value=b") == Set(KEY, b"b")
    assert ask(query="value=q", form="value=") == Set(KEY, b"")
    assert ask(query="value=q&ttl=5", form="dir=false") == Set(KEY, b"q", ttl_s=5)
    assert ask(query="ttl=abc", form="ttl=") == Set(KEY, b"")
    assert refusal("PUT", query="prevValue=x", form="prevValue=")[0] == 201
    assert refusal("PUT", query="a=%yy", form="b=%zz") == (210, 'invalid URL escape "%zz"')
    assert refusal("PUT", query="a=%yy", form="b=c") == (210, 'invalid URL escape "%yy"')
    assert refusal("PUT", query="a;b", form="b=%zz") == (210, 'invalid URL escape "%zz"')


# Section 3: which operation it is.
@pytest.mark.parametrize(
    ("parameters", "command"),
    [
        ("", Set(KEY, b"")),
        ("value=v", Set(KEY, b"v")),
        ("dir=true", Set(KEY, b"", dir=True)),
        ("dir=true&value=v", Set(KEY, b"v", dir=True)),
        ("ttl=0", Set(KEY, b"", ttl_s=0)),
        ("refresh=true&ttl=5", Set(KEY, b"", ttl_s=5, refresh=True)),
        ("refresh=true&ttl=5&value=", Set(KEY, b"", ttl_s=5, refresh=True)),
        ("refresh=true&ttl=0", Set(KEY, b"", ttl_s=0, refresh=True)),
        ("refresh=false&value=v", Set(KEY, b"v")),
        ("prevIndex=0&value=v", Set(KEY, b"v")),
        ("value=v&recursive=1&sorted=1&wait=0&waitIndex=9&stream=1&quorum=1", Set(KEY, b"v")),
        ("prevExist=false&value=v", Create(KEY, b"v")),
        ("prevExist=0&dir=1&ttl=5", Create(KEY, b"", dir=True, ttl_s=5)),
        ("prevExist=false&prevValue=o&prevIndex=7&value=v", Create(KEY, b"v")),
        ("prevExist=true&value=v", Update(KEY, b"v")),
        ("prevExist=true&dir=true", Update(KEY, b"")),
        ("prevExist=true&prevIndex=0&ttl=5", Update(KEY, b"", ttl_s=5)),
        ("prevExist=true&ttl=5&refresh=true", Update(KEY, b"", ttl_s=5, refresh=True)),
        ("prevValue=o&value=v", CompareAndSwap(KEY, b"v", b"o", 0)),
        ("prevIndex=7&value=v", CompareAndSwap(KEY, b"v", None, 7)),
        ("prevIndex=7&prevValue=o&ttl=5&dir=1", CompareAndSwap(KEY, b"", b"o", 7, ttl_s=5)),
        ("prevExist=true&prevValue=o&value=v", CompareAndSwap(KEY, b"v", b"o", 0)),
        ("prevExist=true&prevIndex=7", CompareAndSwap(KEY, b"", None, 7)),
        ("prevIndex=7&ttl=5&refresh=1", CompareAndSwap(KEY, b"", None, 7, ttl_s=5, refresh=True)),
    ],
)
def test_what_a_put_does(parameters, command):
    assert ask("PUT", form=parameters) == command
    assert ask("PUT", query=parameters) == command


@pytest.mark.parametrize(
    ("parameters", "command"),
    [
        ("value=v", CreateInOrder(KEY, b"v")),
        ("", CreateInOrder(KEY, b"")),
        ("dir=true&ttl=5", CreateInOrder(KEY, b"", dir=True, ttl_s=5)),
        ("refresh=true&ttl=5", CreateInOrder(KEY, b"", ttl_s=5)),
        ("value=v&prevExist=true&prevValue=o&prevIndex=7&recursive=1", CreateInOrder(KEY, b"v")),
    ],
)
def test_what_a_post_does(parameters, command):
    assert ask("POST", form=parameters) == command


@pytest.mark.parametrize(
    ("parameters", "command"),
    [
        ("", Delete(KEY)),
        ("dir=true", Delete(KEY, dir=True)),
        ("recursive=true", Delete(KEY, dir=True, recursive=True)),
        ("recursive=true&dir=false", Delete(KEY, dir=True, recursive=True)),
        ("prevIndex=0", Delete(KEY)),
        ("value=v&ttl=5&prevExist=false&ttl=x", Delete(KEY)),
        ("prevValue=o", CompareAndDelete(KEY, b"o", 0)),
        ("prevIndex=7", CompareAndDelete(KEY, None, 7)),
        ("prevIndex=7&prevValue=o&dir=1&recursive=1", CompareAndDelete(KEY, b"o", 7)),
    ],
)
def test_what_a_delete_does(parameters, command):
    assert ask("DELETE", parameters) == command


@pytest.mark.parametrize(
    ("parameters", "request_"),
    [
        ("", Get(KEY)),
        ("recursive=true&sorted=true", Get(KEY, recursive=True, sorted=True)),
        ("quorum=true", Get(KEY, quorum=True)),
        ("quorum=false", Get(KEY)),
        ("stream=true&waitIndex=5", Get(KEY)),
        ("dir=true&value=v&ttl=5&prevValue=o&prevIndex=7&prevExist=true", Get(KEY)),
        ("wait=false", Get(KEY)),
        ("wait=true", Watch(KEY)),
        ("wait=true&quorum=false", Watch(KEY)),
        ("wait=true&quorum=true", Get(KEY, quorum=True)),
        ("wait=1&recursive=1&stream=1&waitIndex=5", Watch(KEY, True, True, 5)),
        ("wait=true&waitIndex=0", Watch(KEY)),
    ],
)
def test_what_a_get_does(parameters, request_):
    assert ask("GET", parameters) == request_
    if isinstance(request_, Get) and "wait=true" not in parameters:
        assert ask("HEAD", parameters) == request_._replace(quorum=False)  # as etcd


@pytest.mark.parametrize("method", METHODS)
def test_values_can_be_declined_where_a_write_answers_them(method):
    declined = refused_or_parsed(method, "noValueOnSuccess=true")[1]
    assert declined == (method in ("PUT", "POST"))
    assert refused_or_parsed(method, "noValueOnSuccess=false")[1] is False
