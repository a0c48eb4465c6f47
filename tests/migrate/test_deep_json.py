"""JSON of any depth is read as the standard library reads what is flat enough for it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.migrate import deep_json

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
CONTENTS = st.recursive(LEAVES, lambda of: st.lists(of) | st.dictionaries(st.text(), of))


def content_of(read, text: str) -> object:
    try:
        return read(text)
    except ValueError:
        return ValueError


@settings(max_examples=100, deadline=None)
@given(CONTENTS, st.integers(0), st.sampled_from('{}[]",:1 \\'), st.sampled_from([None, 1]))
def test_a_text_and_a_damaged_one_are_read_alike(content, place, letter, indent):
    text = json.dumps(content, indent=indent)
    place %= len(text)
    for one in (text, text[:place] + letter + text[place + 1 :], text[:place]):
        found = content_of(lambda text: deep_json._Parser(text).parse(), one)
        assert repr(found) == repr(content_of(json.loads, one))


def test_a_depth_of_thousands_is_read():
    text = '{"a":[' * 20_000 + "7" + "]}" * 20_000
    found = deep_json.loads(text.encode())
    for _ in range(20_000):
        found = found["a"][0]
    assert found == 7
    with pytest.raises(ValueError, match="at character"):
        deep_json.loads(text + "}")
