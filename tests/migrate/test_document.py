"""Documents: what is written is read again, and anything else is refused with its line."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.migrate.documents.document import FORMATS, Document, Key, read, read_file
from kvd.migrate.documents.writing import render
from kvd.migrate.errors import Damaged

EXAMPLE = """\
kvd: 1
prefix: /app            # the keys are below it
index: 1234
keys:
  web/port: "8080"
  web/session: {value: "x", ttl: 60}
  web/until: {value: "x", expiration: 2026-11-27T10:08:31.920467094Z}
  db/: {}
  db/_secret: {base64: AAEC}
"""


def test_the_example_of_the_manual_is_read():
    document = read(EXAMPLE, "f")
    assert (document.prefix, document.index) == ("/app", 1234)
    assert document.keys == {
        "/app/web/port": Key(b"8080"),
        "/app/web/session": Key(b"x", ttl_s=60),
        "/app/web/until": Key(b"x", expiration_ns=1795774111920467094),
        "/app/db": Key(None),
        "/app/db/_secret": Key(b"\0\1\2"),
    }


NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=8
).filter(lambda name: name not in (".", ".."))
KEYS = st.builds(
    Key,
    st.one_of(st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace")), st.binary()),
    st.sampled_from([0, 1, 1795774111920467094]),
    ttl_s=st.none(),
)


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=30, deadline=None)
@given(st.dictionaries(NAMES, KEYS, max_size=6))
def test_what_is_rendered_is_read_again(form, keys):
    document = Document("/p", 7, {f"/p/{name}": key for name, key in keys.items()})
    document.keys |= {"/p/d\xfc": Key(None), "/p/d\xfc.t": Key(None, 5)}
    text = "".join(render(document, form))
    again = read(text, "f", form)
    assert again == document
    assert read(text, "f") == document
    assert read_file(io.BytesIO(b"\xef\xbb\xbf" + text.encode()), "f") == document
    assert "".join(render(again, form)) == text


@pytest.mark.parametrize(
    ("text", "received"),
    [
        ("keys: {}", "line 1: expected `kvd: 1`"),
        ("kvd: 2", "line 1: expected `kvd: 1`"),
        ("kvd: 1\nkeys:\n  port: 8080", 'line 3: port is a number; write "8080"'),
        ("kvd: 1\nkeys:\n  a: yes", 'line 3: a is true or false; write "yes"'),
        ("kvd: 1\nkeys:\n  a: 1.50", 'line 3: a is a number; write "1.50"'),
        ("kvd: 1\nkeys:\n  a:", "line 3: a is nothing"),
        ("kvd: 1\nkeys:\n  a: [x]", "line 3: a is a list"),
        ("kvd: 1\nkeys:\n  a/: x", "line 3: a/ is a text; a directory is {} or"),
        ("kvd: 1\nkeys:\n  a: x\n  a: y", "line 3: a is there twice"),
        ("kvd: 1\nkeys:\n  a: x\n  a/b: y", "line 4: a/b: a is a key, not a directory"),
        ("kvd: 1\nkeys:\n  /a: x", "line 3: '/a' is no name of a key"),
        ("kvd: 1\nkeys:\n  a//b: x", "line 3: 'a//b' is no name of a key"),
        ("kvd: 1\nkeys:\n  8080: x", 'line 3: the name 8080 is no text; write "8080"'),
        ("kvd: 1\nkeys:\n  a: {value: x, tll: 1}", "line 3: a: unknown field tll"),
        ("kvd: 1\nkeys:\n  a: {value: x, ttl: 0}", "line 3: a: ttl: expected"),
        ("kvd: 1\nkeys:\n  a: {value: x, ttl: 1, expiration: 2026-11-27T10:08:31Z}", "either ttl"),
        (
            "kvd: 1\nkeys:\n  a: {value: x, expiration: 9999-11-27T10:08:31Z}",
            "later than a key can end",
        ),
        ("kvd: 1\nkeys:\n  a: {value: x, base64: AA==}", "either value or base64"),
        ("kvd: 1\nkeys:\n  a: {base64: '!'}", "no base64"),
        ("kvd: 1\nkeys:\n  a: {}", "either value or base64"),
        ("kvd: 1\nmore: 1", "line 2: unknown field more"),
        ("kvd: 1\nprefix: app", "line 2: prefix: expected a key"),
        ("kvd: 1\nindex: " + "9" * 5000, "line 2: index: expected a number"),
        ('{"a": ' * 100_000, "is no JSON"),
        ('{"kvd": true, "keys": {}}', "line 1: expected `kvd: 1` in a document of kvd"),
        ('{"kvd": 1.0, "keys": {}}', "line 1: expected `kvd: 1` in a document of kvd"),
        ("kvd: 1\nkeys: [", ": is no YAML"),
        ("", "line 1: the document: expected a mapping"),
        ("- a", "line 1: the document: expected a mapping"),
        ('{"kvd": 1,\n "keys": {\n"a": 8080}}', 'line 3: a is a number; write "8080"'),
        ('{"kvd": 1,\n "keys": {\n"a": "x", "a": "y"}}', "line 3: a is there twice"),
        ('{"kvd": 1,\n "keys": {"a": "\\ud800"}}', "line 2: a: half of a character"),
        ('{"kvd": 1,\n "keys": {', "is no JSON"),
        ('{"kvd": 1}\n{"key": "a", "value": 1}', "line 2: a: value is a number"),
        ('{"kvd": 1}\n{"value": "1"}', "line 2: expected a line like"),
        ('{"kvd": 1}\n{', "line 2: is no JSON"),
        ('{"kvd": 1}\n[1]', "line 2: expected a line like"),
        ('\n{"kvd": 1, "count": 2}\n{"key": "a", "value": ""}', "line 2: count: expected 2 keys"),
        ('{"kvd": 1, "keys": {}, "count": 1}', "line 1: unknown field count"),
        ('{"kvd": 1}\n{"key": "a", "value": "", "value": ""}', "line 2: value is there twice"),
    ],
)
def test_anything_else_is_refused_with_its_line(text, received):
    with pytest.raises(Damaged) as raised:
        read(text, "f")
    assert received in str(raised.value)
    assert str(raised.value).startswith("f: line ")


@pytest.mark.parametrize("cut", range(1, 4))
def test_lines_of_json_that_are_cut_off_are_refused(cut):
    document = Document("/p", 7, {f"/p/{name}": Key(b"x") for name in "abc"})
    lines = "".join(render(document, "jsonl")).splitlines(keepends=True)
    with pytest.raises(Damaged, match="f: line 1: count: expected 3 keys, there are"):
        read_file(io.BytesIO("".join(lines[:cut]).encode()), "f")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"kvd": 1}\n{"key": "a", "value": "\xff"}\n', "f: line 2: is no UTF-8 at offset 23"),
        (b"kvd: 1\nkeys:\n  a: \xff", "f: is no UTF-8 at offset 18"),
        (b'{"kvd": 1}\n' + b" " * ((64 << 20) + 1), "f: line 2: has more than 64 MiB"),
    ],
    ids=["line", "whole", "long"],
)
def test_a_file_that_is_no_document_is_refused_with_its_place(content, reason):
    with pytest.raises(Damaged, match=reason):
        read_file(io.BytesIO(content), "f")


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, "a: " + "{a: " * 20_000])
def test_depth_is_refused(text):
    with pytest.raises(Damaged):
        read(text, "f")
