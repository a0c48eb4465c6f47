"""Forms: which bodies are one, and how their escapes are decoded."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.v2.errors import ApiError
from kvd.v2.form import is_form

FORM = "application/x-www-form-urlencoded"


# Which bodies are forms.
@pytest.mark.parametrize(
    "content_type",
    [
        FORM,
        FORM.upper(),
        f"  {FORM}  ",
        f"{FORM};",
        f"{FORM}; charset=utf-8",
        f"{FORM} ; charset = utf-8",
        f'{FORM};a="b\\"c";d=e',
    ],
)
def test_these_bodies_are_forms(content_type):
    assert is_form(content_type)


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/json", "bogus", "multipart/form-data; boundary=x",
     f"{FORM}x", "text/plain;", "*/*"],
)  # fmt: skip
def test_other_bodies_are_ignored(content_type):
    assert not is_form(content_type)


@pytest.mark.parametrize("media_type", [FORM, "text/plain", "bogus"])
@pytest.mark.parametrize(
    ("parameters", "cause"),
    [
        (";;bad", "mime: invalid media parameter"),
        (";charset", "mime: invalid media parameter"),
        ("; ;", "mime: invalid media parameter"),
        (";a=b c", "mime: invalid media parameter"),
        (';a="', "mime: invalid media parameter"),
        (";=b", "mime: invalid media parameter"),
        (";a=1;a=2", "mime: duplicate parameter name"),
        (";a=1;A=2", "mime: duplicate parameter name"),
    ],
)
def test_malformed_parameters_of_a_type_are_refused_whatever_the_type(
    media_type, parameters, cause
):
    with pytest.raises(ApiError) as caught:
        is_form(media_type + parameters)
    assert (caught.value.code, caught.value.cause.decode()) == (210, cause)


@pytest.mark.parametrize(
    ("content_type", "cause"),
    [
        ("/", "mime: no media type"),
        (";", "mime: no media type"),
        ("text/", "mime: expected token after slash"),
        ("a b", "mime: expected slash after first token"),
        (f"{FORM} x", "mime: unexpected content after media subtype"),
        (f"{FORM}/y", "mime: unexpected content after media subtype"),
    ],
)
def test_what_is_no_media_type_is_refused(content_type, cause):
    with pytest.raises(ApiError) as caught:
        is_form(content_type)
    assert (caught.value.code, caught.value.cause.decode()) == (210, cause)


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=40))
def test_any_content_type_is_a_form_or_not_or_refused(content_type):
    with contextlib.suppress(ApiError):
        assert is_form(content_type) in (True, False)
