"""go_json.py: what it takes and refuses is what Go's encoding/json does; the texts are Go's."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvd.v2.go_json import Malformed, decode, encode, fields, name_of, text_of

# What etcd 3.4.23 (Go 1.19) answered to each.
COMPLAINTS = {
    "": "unexpected end of JSON input",
    " \t\n": "unexpected end of JSON input",
    "[1,": "unexpected end of JSON input",
    '{"a"': "unexpected end of JSON input",
    '{"a":': "unexpected end of JSON input",
    '{"': "unexpected end of JSON input",
    "zz": "invalid character 'z' looking for beginning of value",
    "\\": r"invalid character '\\' looking for beginning of value",
    "\0": r"invalid character '\x00' looking for beginning of value",
    "\u00e9": "invalid character '\u00c3' looking for beginning of value",
    "\u2028": "invalid character '\u00e2' looking for beginning of value",
    '{"a":\'x': r"invalid character '\'' looking for beginning of value",
    '{"a":"b"} x': "invalid character 'x' after top-level value",
    "01": "invalid character '1' after top-level value",
    '{"a" 5}': "invalid character '5' after object key",
    '{"a":5 6}': "invalid character '6' after object key:value pair",
    '{"a":1]': "invalid character ']' after object key:value pair",
    '{"a":1"': "invalid character '\"' after object key:value pair",
    '{"a":01}': "invalid character '1' after object key:value pair",
    "[1 2]": "invalid character '2' after array element",
    "[1}": "invalid character '}' after array element",
    "{a:5}": "invalid character 'a' looking for beginning of object key string",
    "{,}": "invalid character ',' looking for beginning of object key string",
    '{"a":1,}': "invalid character '}' looking for beginning of object key string",
    "{'a'}": r"invalid character '\'' looking for beginning of object key string",
    '{"a":nulx}': "invalid character 'x' in literal null (expecting 'l')",
    '{"a":tRue}': "invalid character 'R' in literal true (expecting 'r')",
    '{"a":f1}': "invalid character '1' in literal false (expecting 'a')",
    '{"a":t': "invalid character ' ' in literal true (expecting 'r')",
    r'"\x"': "invalid character 'x' in string escape code",
    '"\\': "invalid character ' ' in string escape code",
    r'{"a":"\u00zz"}': r"invalid character 'z' in \u hexadecimal character escape",
    r'{"a":"\u12': r"invalid character ' ' in \u hexadecimal character escape",
    '"\1"': r"invalid character '\x01' in string literal",
    '"abc\n"': r"invalid character '\n' in string literal",
    "-x": "invalid character 'x' in numeric literal",
    "[-]": "invalid character ']' in numeric literal",
    "-": "invalid character ' ' in numeric literal",
    "1.x": "invalid character 'x' after decimal point in numeric literal",
    '{"a":1e}': "invalid character '}' in exponent of numeric literal",
    '{"a":1e+': "invalid character ' ' in exponent of numeric literal",
    "[" * 10_001: "invalid character '[' exceeded max depth",
}

values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
nearly_json = st.text(alphabet='{}[]",:\\/ \n\tu0123456789abcdefxnulltrue+-.eE\x01', max_size=12)


@pytest.mark.parametrize("text", COMPLAINTS, ids=lambda text: ascii(text)[:20])
def test_what_is_wrong_is_said_in_gos_words(text):
    with pytest.raises(Malformed) as raised:
        decode(text.encode())
    assert str(raised.value) == COMPLAINTS[text]


@settings(deadline=None)
@given(values)
def test_what_is_written_means_what_was_given(value):
    encoded = encode(value)
    assert json.loads(encoded) == value
    assert decode(encoded) == as_read(value)


@settings(deadline=None)
@given(values.map(json.dumps) | nearly_json, st.integers(0, 100), st.text(max_size=1))
@example("[1,2]", 2, "x")
def test_it_takes_what_json_is_and_complains_of_everything_else(text, place, inserted):
    text = text[:place] + inserted + text[place:]
    try:
        json.loads(text, parse_constant=float.fromhex)  # which NaN and Infinity are none for
    except (ValueError, RecursionError):
        with pytest.raises(Malformed) as raised:
            decode(text.encode())
        assert str(raised.value).startswith(("invalid character", "unexpected end"))
    else:
        decode(text.encode())


def test_the_escapes_are_those_of_go():
    assert encode('<>&"\\\b\f\n\r\t\x1f\x7f/\u2028\u2029\u00e4') == (
        rb'"\u003c\u003e\u0026\"\\\u0008\u000c\n\r\t\u001f'
        b"\x7f/" + rb"\u2028\u2029" + b'\xc3\xa4"'
    )
    assert encode("\udcff") == rb'"\ufffd"'  # a byte that is no UTF-8, as it came in a path
    assert encode({"a": [None, True, "b"], "c": {}}) == b'{"a":[null,true,"b"],"c":{}}'


def test_what_is_no_text_is_a_replacement_character():
    value = decode(b'"a\\ud800\\ud83d\\ude00\xff\xed\xa0\x80"')
    assert text_of(value) == "a\ufffd\U0001f600\ufffd\ufffd\ufffd\ufffd"
    assert text_of(None) == ""


@pytest.mark.parametrize(
    ("text", "name"),
    [("null", "null"), ("true", "bool"), ("1e999", "number"), ("[]", "array"), ("{}", "object")],
)
def test_what_is_no_string_is_called_by_gos_name(text, name):
    value = decode(text.encode())
    assert name_of(value) == name
    if value is not None:
        with pytest.raises(Malformed, match=name):
            text_of(value)


def test_names_match_whatever_their_case_and_the_last_one_counts():
    value = decode('{"U\u017fer":1,"other":2,"USER":3,"u\u017f\u017f":4,"\u212aey":5}'.encode())
    assert list(fields(value, ("user", "key"))) == [("user", 1), ("user", 3), ("key", 5)]


def test_something_may_follow_where_only_one_value_is_asked_for():
    assert decode(b" [1] }", whole=False) == [1]
    with pytest.raises(Malformed):
        decode(b" ]", whole=False)


def as_read(value):
    """A value as it comes back: an object as its pairs."""
    if isinstance(value, dict):
        return tuple((name, as_read(field)) for name, field in value.items())
    return list(map(as_read, value)) if isinstance(value, list) else value
