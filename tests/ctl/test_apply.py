"""kvdctl diff and apply: the server becomes the document, and no change of others is lost."""

import json
import random

import pytest

import kvd
from kvd.ctl.verbs import diff

DOCUMENT = """
kvd: 1
prefix: {prefix}
keys:
  port: "8080"
  session: {{value: s, ttl: 3000}}
  db/: {{}}
  db/_secret: {{base64: AP8=}}
"""


@pytest.fixture(scope="module")
def store(server):
    with kvd.Client(server.url) as client:
        yield client


@pytest.fixture
def document(tmp_path):
    def write(prefix, keys=None):
        text = DOCUMENT.format(prefix=prefix)
        if keys is not None:
            text = json.dumps({"kvd": 1, "prefix": prefix, "keys": keys})
        (tmp_path / "document").write_text(text)
        return tmp_path / "document"

    return write


def test_the_changes_are_shown_made_and_not_made_twice(ctl, store, document):
    store.set("/one/port", "80")
    store.set("/one/old", "x")
    store.set("/one/session", "s")
    file = document("/one")
    shown = [
        "+ /one/db/_secret = base64:AP8=",
        "- /one/old",
        '~ /one/port  "80" -> "8080"',
        "~ /one/session  ttl none -> 3000",
    ]
    assert ctl("diff", file) == (6, "".join(f"{line}\n" for line in shown), "")
    status, out, err = ctl("apply", file, "--dry-run")
    assert (status, err) == (6, "")
    assert "- /one/old" not in out
    first = store.get("/one").index + 1
    status, out, err = ctl("apply", file)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == f"applied 3 changes at {first}..{first + 2}"
    assert ctl("apply", file) == (0, "", "")
    assert ctl("diff", file) == (6, "- /one/old\n", "")
    assert ctl("apply", file, "--prune", "--yes")[0] == 0
    assert ctl("diff", file) == (0, "", "")
    assert store.get_bytes("/one/db/_secret") == b"\0\xff"
    assert 2900 < store.get("/one/session").ttl <= 3000


def test_programs_get_json(ctl, store, document):
    store.set("/j/a", "1")
    status, out, _ = ctl(
        "-o", "json", "diff", document("/j", {"a": "2", "b": {"value": "", "ttl": 5}})
    )
    assert status == 6
    assert json.loads(out) == [
        {"action": "change", "key": "/j/a", "dir": False, "before": "1", "after": "2"},
        {"action": "add", "key": "/j/b", "dir": False, "after": "", "ttl": 5},
    ]


def test_a_long_value_is_shown_line_by_line(ctl, store, document):
    text = "".join(f"line {number}\n" for number in range(20))
    store.set("/long/a", text)
    file = document("/long", {"a": text.replace("line 7", "line seven")})
    out = ctl("diff", file)[1].splitlines()
    assert out[0] == "~ /long/a"
    assert "    -line 7" in out
    assert "    +line seven" in out


def test_another_key_takes_the_place_of_the_prefix(ctl, store, document):
    file = document("/from", {"x/y": "1"})
    assert ctl("apply", file, "/to")[0] == 0
    assert store.get("/to/x/y").value == "1"
    assert ctl("diff", file, "/to") == (0, "", "")
    assert ctl("diff", file)[0] == 6


def test_hidden_keys_that_the_document_does_not_name_are_left_alone(ctl, store, document):
    store.set("/hid/_own", "x")
    store.set("/hid/a", "1")
    file = document("/hid", {"a": "1", "_named": "2"})
    assert ctl("apply", file, "--prune", "--yes")[0] == 0
    assert store.get("/hid/_own").value == "x"
    assert store.get("/hid/_named").value == "2"
    assert ctl("diff", file) == (0, "", "")


def test_pruning_is_asked_about(ctl, store, document, own_environment):
    store.set("/ask/a", "1")
    file = document("/ask", {"b": "1"})
    words = "--prune would remove 1 key, and there is no terminal to ask on: add --yes"
    assert ctl("apply", file, "--prune")[::2] == (1, f"kvdctl: {words}\n")
    own_environment.setattr(diff.terminal, "choose", lambda _: "")
    assert ctl("apply", file, "--prune")[0] == 7
    assert store.get("/ask/a").value == "1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kvd: 1\nkeys:\n  web/port: 8080\n", 'line 3: web/port is a number; write "8080"'),
        ("kvd: 2\n", "line 1: expected `kvd: 1` in a document of kvd"),
        ("[", ": is no YAML: "),
    ],
)
def test_what_is_no_document_is_refused_with_its_line(ctl, tmp_path, text, words):
    (tmp_path / "document").write_text(text)
    for verb in ("diff", "apply"):
        status, out, err = ctl(verb, tmp_path / "document")
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("kvdctl: ")
        assert words in err


def test_a_file_is_never_replaced_by_a_directory_nor_a_directory_by_a_file(ctl, store, document):
    store.set("/kind/a", "1")
    store.set("/kind/d/x", "1")
    for keys, words in (
        ({"a/b": "1"}, "/kind/a is a file, in the document it is a directory: remove it"),
        ({"d": "1"}, "/kind/d is a directory, in the document it is a file: remove it"),
    ):
        assert ctl("apply", document("/kind", keys)) == (1, "", f"kvdctl: {words}\n")


def random_keys(dice, prefix):
    found = {}
    for _ in range(dice.randint(0, 12)):
        name = "/".join(dice.choice("abc") for _ in range(dice.randint(1, 3)))
        is_free = not any(one.startswith(f"{name}/") or name.startswith(f"{one}/") for one in found)
        if is_free and f"{name}/" not in found:
            found[name] = dice.choice(["1", "2", "", {"value": "x", "ttl": 3000}])
    return found


@pytest.mark.parametrize("is_together", [True, False], ids=["transaction", "one by one"])
def test_random_documents_on_random_trees(ctl, store, document, own_environment, is_together):
    dice = random.Random(3)
    if not is_together:
        own_environment.setattr(diff, "_TRANSACTION_MAX", -1)
    for number in range(20):
        prefix = f"/random/{is_together}/{number}"
        document_keys, there = random_keys(dice, prefix), random_keys(dice, prefix)
        for name, value in there.items():
            store.set(f"{prefix}/{name}", value if isinstance(value, str) else "x")
        clash = any(
            one.startswith(f"{other}/") or other.startswith(f"{one}/")
            for one in document_keys
            for other in there
        )
        file = document(prefix, document_keys)
        status = ctl("apply", file, "--prune", "--yes")[0]
        if clash:
            assert status in (0, 1)  # a file with what is below it only in the document
            continue
        assert status == 0
        assert ctl("diff", file) == (0, "", "")
        index = store.get("/random").index
        assert ctl("apply", file, "--prune", "--yes") == (0, "", "")
        assert store.get("/random").index == index


@pytest.mark.parametrize("is_together", [True, False], ids=["transaction", "one by one"])
@pytest.mark.parametrize("what", ["changed", "removed", "created", "changed, to be removed"])
def test_a_change_after_the_read_is_not_overwritten(  # noqa: PLR0917 -- fixtures
    ctl, store, document, own_environment, is_together, what
):
    if not is_together:
        own_environment.setattr(diff, "_TRANSACTION_MAX", -1)
    prefix = f"/others/{is_together}/{what.replace(', ', '-').replace(' ', '-')}"
    for name in ("a", "old"):
        store.set(f"{prefix}/{name}", "1")
    file = document(prefix, {"a": "2", "b": "2", "c": "2"})
    read_at = store.get("/").index

    def choose(_):
        match what:
            case "changed":
                store.set(f"{prefix}/a", "theirs")
            case "removed":
                store.delete(f"{prefix}/a")
            case "created":
                store.set(f"{prefix}/b", "theirs")
            case _:
                store.set(f"{prefix}/old", "theirs")
        return "y"

    own_environment.setattr(diff.terminal, "choose", choose)
    status, _, err = ctl("apply", file, "--prune")
    index = read_at + 1
    key, words = {
        "changed": ("a", f"was changed at {index}"),
        "removed": ("a", "was removed"),
        "created": ("b", "was created"),
        "changed, to be removed": ("old", f"was changed at {index}"),
    }[what]
    before = {"a": 0, "b": 1, "old": 3}[key] * (not is_together)
    assert status == 7
    text = f"{prefix}/{key} {words}, after it was read ({read_at}): {before} of 4 changes applied"
    assert err == f"kvdctl: {text}, run again\n"
    if what != "removed":
        assert store.get(f"{prefix}/{key}").value == "theirs"
    own_environment.setattr(diff.terminal, "choose", lambda _: "y")
    assert ctl("apply", file, "--prune")[0] == 0
    assert ctl("diff", file) == (0, "", "")


def test_a_directory_gets_the_time_of_the_document_and_one_too_many_is_removed(
    ctl, store, document
):
    store.mkdir("/dirs/ttl")
    store.set("/dirs/gone/deep/x", "1")
    file = document("/dirs", {"ttl/": {"ttl": 3000}, "new/": {}})
    assert ctl("apply", file, "--prune", "--yes")[0] == 0
    assert ctl("diff", file) == (0, "", "")
    assert [node.key for node in store.ls("/dirs", recursive=True)] == ["/dirs/new", "/dirs/ttl"]
    assert store.get("/dirs/ttl").ttl > 2900


def test_without_a_server_apply_waits_as_long_as_it_may(kvdctl, document):
    file = document("/x", {"a": "1"})
    assert kvdctl("-C", "127.0.0.1:1", "apply", file, "--wait", "0.2")[0] == 2
