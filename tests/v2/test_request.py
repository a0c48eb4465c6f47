"""Parameters of requests: what they make of a command, or the first thing wrong with them."""

import itertools
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

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
from kvd.v2.errors import TABLE, ApiError
from kvd.v2.form import LARGE_FORM_BYTES, PARAMETERS_MAX, TakesLong
from kvd.v2.request import DIGITS_MAX, Parsed, parse, parse_in_turns, parse_write

METHODS = ["GET", "HEAD", "PUT", "POST", "DELETE"]
KEY = b"/k"
UINT_MAX = 2**64 - 1

TRUE = ["1", "t", "T", "TRUE", "true", "True"]
FALSE = ["0", "f", "F", "FALSE", "false", "False"]
NO_BOOLS = ["", "yes", "no", "on", "tRUE", "2", "01", "true ", " true", "\u0661"]
NO_NUMBERS = ["-1", "+1", "1.0", "0x10", "1_000", " 1", "1 ", "1e3", "\u0661", "x"]
TOO_LARGE = [str(UINT_MAX + 1), "9" * 21, "1" + "0" * 100]


def ask(method: str = "PUT", query: str | bytes = "", form: str | bytes = "") -> Any:
    """What a request asks for, without whether it wants values."""
    return refused_or_parsed(method, query, form)[0]


def refused_or_parsed(method: str, query: str | bytes, form: str | bytes = "") -> Any:
    query = query.encode() if isinstance(query, str) else query
    form = form.encode() if isinstance(form, str) else form
    return parse(method, KEY, query, form)


def refusal(method: str, query: str | bytes = "", form: str | bytes = "") -> tuple[int, str]:
    """Code and cause of the error, which never tells an index."""
    with pytest.raises(ApiError) as caught:
        refused_or_parsed(method, query, form)
    assert caught.value.index == 0
    assert TABLE[caught.value.code].status == 400
    return caught.value.code, caught.value.cause.decode()


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


BOOLS = ["recursive", "sorted", "wait", "dir", "quorum", "stream", "noValueOnSuccess",
         "prevExist", "refresh"]  # fmt: skip


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
        ("quorum=true", Get(KEY)),
        ("stream=true&waitIndex=5", Get(KEY)),
        ("dir=true&value=v&ttl=5&prevValue=o&prevIndex=7&prevExist=true", Get(KEY)),
        ("wait=false", Get(KEY)),
        ("wait=true", Watch(KEY)),
        ("wait=true&quorum=false", Watch(KEY)),
        ("wait=true&quorum=true", Get(KEY)),
        ("wait=1&recursive=1&stream=1&waitIndex=5", Watch(KEY, True, True, 5)),
        ("wait=true&waitIndex=0", Watch(KEY)),
    ],
)
def test_what_a_get_does(parameters, request_):
    assert ask("GET", parameters) == request_
    if isinstance(request_, Get) and "wait=true" not in parameters:
        assert ask("HEAD", parameters) == request_


@pytest.mark.parametrize("method", METHODS)
def test_values_can_be_declined_where_a_write_answers_them(method):
    declined = refused_or_parsed(method, "noValueOnSuccess=true")[1]
    assert declined == (method in ("PUT", "POST"))
    assert refused_or_parsed(method, "noValueOnSuccess=false")[1] is False


NAMES = [*BOOLS, "value", "ttl", "prevValue", "prevIndex", "waitIndex", "", "x", "%", ";"]
PIECES = st.one_of(
    st.binary(max_size=8),
    st.builds(
        "{}={}".format,
        st.sampled_from(NAMES),
        st.sampled_from(["", *TRUE[:2], *FALSE[:2], "7", "x", "%41", "%4", "+", str(UINT_MAX)]),
    ).map(str.encode),
)
FORMS = st.one_of(st.binary(max_size=64), st.lists(PIECES, max_size=5).map(b"&".join))


@given(st.sampled_from(METHODS), FORMS, FORMS)
def test_any_bytes_are_a_request_or_refused(method, query, form):
    try:
        request, no_value, recursive = parse(method, KEY, query, form)
    except ApiError as error:
        refused = error
    else:
        assert request.key == KEY
        assert isinstance(no_value, bool)
        assert isinstance(recursive, bool)
        return
    assert 201 <= refused.code <= 212
    assert refused.index == 0


# What clients send, with now and then something amiss.
USUAL = st.builds(
    lambda pairs, end: b"&".join(b"%b=%b" % pair for pair in pairs) + end,
    st.lists(
        st.tuples(
            st.sampled_from([name.encode() for name in NAMES[:-2]] + [b"valu%65", b"unknown"]),
            st.sampled_from(
                [
                    *(b"", b"true", b"false", b"1", b"0", b"7", b"007", b"x", b"a=b", b"a+b"),
                    *(b"%41", b"%3D%26%2B", b"%4", b"%zz", b"+", b"\xff="),
                    *(b"9" * 19, b"9" * 20, b"0" * 30),
                ]
            ),
        ),
        max_size=5,
    ),
    st.sampled_from([b""] * 20 + [b"&", b";", b"&wait"]),
)


@settings(max_examples=1000)
@given(st.sampled_from(METHODS), USUAL | FORMS, USUAL | FORMS | st.just(b""))
def test_a_request_that_is_parsed_at_once_is_what_it_is_in_turns(method, query, form):
    def in_turns() -> Parsed:
        turns = parse_in_turns(method, KEY, query, form)
        while True:
            try:
                next(turns)
            except StopIteration as end:
                return end.value

    at_once = outcome(lambda: parse(method, KEY, query, form))
    assert at_once == outcome(in_turns)
    if method not in ("GET", "HEAD"):
        assert at_once == outcome(lambda: parse_write(method, KEY, query, form))


def outcome(ask: Callable[[], Parsed]) -> object:
    """What a request was parsed to, or what was wrong with it."""
    try:
        request, no_value, recursive = ask()
    except ApiError as refused:
        return refused.code, refused.cause, refused.index
    return type(request), request, no_value, recursive


@given(st.binary(max_size=40).map(lambda raw: raw.replace(b"%", b"%25")), st.binary(max_size=9))
def test_a_form_is_decoded_as_pythons_own_library_does(value, more):
    escaped = value + b"".join(b"%%%02x" % byte for byte in more) + b"+=%0D%0a=\r\n_="
    assume(b"&" not in escaped and b";" not in escaped)
    request = ask("PUT", form=b"value=" + escaped)
    assert request.value == unquote_to_bytes(escaped.replace(b"+", b" "))


@pytest.mark.parametrize("around", range(-4, 5))
def test_a_large_form_is_decoded_in_slices_that_fit_together(around):
    unit = b"%41=+"
    form = b"value=" + b"v" * around * (around > 0) + unit * (LARGE_FORM_BYTES // 2) + b"%C3%A4"
    turns = parse_in_turns("PUT", KEY, b"", form)
    pauses = 0
    while True:
        try:
            next(turns)
        except StopIteration as end:
            request = end.value[0]
            break
        pauses += 1
    with pytest.raises(TakesLong):
        parse("PUT", KEY, b"", form)
    assert request.value == unquote_to_bytes(form[6:].replace(b"+", b" "))
    assert pauses >= len(form) // LARGE_FORM_BYTES


def test_many_values_with_escapes_are_decoded_in_turns_too():
    form = b"&".join([b"%41" * 1000 + b"=1"] * 900)
    assert sum(1 for _ in parse_in_turns("PUT", KEY, b"", form)) >= len(form) // LARGE_FORM_BYTES


def test_leading_zeros_are_limited_in_number():
    assert ask("PUT", "ttl=" + "0" * (DIGITS_MAX - 1) + "7").ttl_s == 7
    assert refusal("PUT", "ttl=" + "0" * DIGITS_MAX + "7")[0] == 202


@pytest.mark.parametrize("place", ["query", "form"])
def test_parameters_are_limited_in_number(place):
    def in_turns(said: bytes) -> Parsed:
        query_and_form = (said, b"") if place == "query" else (b"", said)
        with pytest.raises(TakesLong):
            parse("PUT", KEY, *query_and_form)
        turns = parse_in_turns("PUT", KEY, *query_and_form)
        while True:
            try:
                next(turns)
            except StopIteration as end:
                return end.value

    most = b"&".join([b"a=1"] * PARAMETERS_MAX)
    assert in_turns(most)[0] == Set(KEY, b"")
    with pytest.raises(ApiError) as refused:
        in_turns(most + b"&")
    assert (refused.value.code, refused.value.cause) == (210, b"more than 1000 parameters")


@pytest.mark.parametrize(
    ("form", "query"),
    [
        (b"", b"parameter=1&" * 65),
        (b"a=1", b"parameter=1&" * 65),
        (b"parameter=1&" * 65, b"a=1"),
        (b"value=" + b"%01" * 12_000, b""),
    ],
    ids=["query", "query-beside-a-form", "form", "escapes"],
)
def test_what_takes_long_is_parsed_in_turns(form, query):
    with pytest.raises(TakesLong):
        parse("PUT", KEY, query, form)


@pytest.mark.parametrize("end", [b"%4", b"%", b"%%41", b"%4g"])
def test_a_bad_escape_is_found_at_the_end_of_a_large_form(end):
    turns = parse_in_turns("PUT", KEY, b"", b"value=" + b"%41" * LARGE_FORM_BYTES + end)
    with pytest.raises(ApiError) as refused:
        list(turns)
    assert refused.value.cause == b'invalid URL escape "%b"' % end[:3]
