"""Any bytes as a request, in turns and at once, and the limits of what is parsed."""

from collections.abc import Callable
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvd.v2.commands import Set
from kvd.v2.errors import ApiError
from kvd.v2.form import LARGE_FORM_BYTES, PARAMETERS_MAX, TakesLong
from kvd.v2.request import DIGITS_MAX, Parsed, parse, parse_in_turns, parse_write
from tests.support.requests import BOOLS, FALSE, KEY, METHODS, TRUE, UINT_MAX, ask, refusal

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


@settings(max_examples=10 * settings.default.max_examples)
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
