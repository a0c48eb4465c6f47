"""kvdctl edit never overwrites a change that its user has not seen."""

import json
import random
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import kvd
from kvd.client import CompareFailed, KeyNotFound
from kvd.ctl.verbs import edit
from tests.support.server import ROOT

INTERLEAVINGS = 200


@pytest.fixture(scope="module")
def store(server):
    with kvd.Client(server.url) as client:
        yield client


@pytest.fixture
def editing(ctl, own_environment, tmp_path):
    """Runs `edit` with functions in the place of the editor and of the user at the terminal."""
    own_environment.setattr("tempfile.tempdir", str(tmp_path))

    def run(key, *edits, answers="", flags=()):
        steps, asked = iter(edits), []
        letters = iter(answers)

        def editor(command, **_):
            file = Path(command[-1])
            new = next(steps)(file.read_text())
            if new is not None:
                file.write_text(new)
            return SimpleNamespace(returncode=0)

        def choose(question):
            asked.append(question)
            return next(letters)

        own_environment.setattr(edit.subprocess, "run", editor)
        own_environment.setattr(edit.terminal, "choose", choose)
        own_environment.setattr(edit.terminal, "is_there", lambda: True)
        return (*ctl("edit", key, *flags), asked)

    return run


def kept(err):
    """The file that an error names."""
    return Path(re.search(r"kept in (\S+)\n", err)[1])


def test_an_unchanged_text_writes_nothing(editing, store, tmp_path):
    index = store.set("/e/same", "text").index
    for edited in (lambda _: None, lambda text: text + "\n"):
        assert editing("/e/same", edited)[:2] == (0, "no change\n")
    assert store.get("/e/same").modified_index == index
    assert not list(tmp_path.glob("kvdctl-*"))


def test_a_changed_text_is_saved_with_the_time_that_is_left(editing, store, tmp_path):
    store.set("/e/ttl", "1\n", ttl=3000)
    status, out, err, _ = editing("/e/ttl", lambda text: text + "2\n")
    node = store.get("/e/ttl")
    assert (status, out, err) == (0, f"saved at {node.modified_index}\n", "")
    assert node.value == "1\n2\n"
    assert 2900 < node.ttl <= 3000
    assert not list(tmp_path.glob("kvdctl-*"))


def test_a_change_of_others_apart_is_merged_after_a_question(editing, store):
    store.set("/e/merge", "1\n2\n3\n")

    def other(text):
        store.set("/e/merge", "1\n2\n3\n4\n")
        return "0\n" + text

    status, _, _, asked = editing("/e/merge", other, answers="ds")
    assert status == 0
    assert store.get("/e/merge").value == "0\n1\n2\n3\n4\n"
    index = store.get("/e/merge").modified_index - 1
    words = f"/e/merge: it was changed by others at {index}; both changes merged: "
    assert asked == [words + "[s]ave [d]iff [e]dit [q]uit "] * 2


def test_a_merge_that_the_user_does_not_want_is_kept_in_a_file(editing, store):
    store.set("/e/quit", "1\n2\n")

    def other(text):
        store.set("/e/quit", "1\n2\n3\n")
        return "0\n" + text

    status, _, err, _ = editing("/e/quit", other, answers="q")
    assert status == 7
    assert store.get("/e/quit").value == "1\n2\n3\n"
    assert kept(err).read_text() == "0\n1\n2\n3\n"
    assert stat.S_IMODE(kept(err).stat().st_mode) == 0o600
    assert stat.S_IMODE(kept(err).parent.stat().st_mode) == 0o700


def test_a_conflict_is_never_saved_with_its_marks(editing, store):
    store.set("/e/conflict", "1\n")

    def other(_):
        store.set("/e/conflict", "theirs\n")
        return "mine\n"

    def left(text):
        assert text.startswith("<<<<<<< yours\nmine\n||||||| before\n1\n=======\ntheirs\n>>>>>>>")

    status, *_ = editing("/e/conflict", other, left, lambda _: "both\n", answers="e")
    assert (status, store.get("/e/conflict").value) == (0, "both\n")
    store.set("/e/conflict", "1\n")
    status, _, err, _ = editing("/e/conflict", other, left, answers="q")
    assert (status, store.get("/e/conflict").value) == (7, "theirs\n")
    assert "<<<<<<< yours" in kept(err).read_text()


def test_a_key_that_was_removed_meanwhile_is_created_if_the_user_wants_it(editing, store):
    def other(text):
        store.delete("/e/gone")
        return text + "2"

    for answer, status in (("q", 7), ("c", 0)):
        store.set("/e/gone", "1")
        assert editing("/e/gone", other, answers=answer)[0] == status
        assert store.get_or("/e/gone", None) == (None if status else "12")


def test_a_new_key_needs_a_flag(editing, store):
    words = "kvdctl: /e/new is not there; --create makes it\n"
    assert editing("/e/new")[:3] == (4, "", words)
    assert editing("/e/new", lambda text: text + "x", flags=["--create"])[0] == 0
    assert store.get("/e/new").value == "x"


def test_a_new_key_that_others_create_first_is_not_overwritten(editing, store):
    def other(_):
        store.set("/e/first", "theirs\n")
        return "mine\n"

    status, *_ = editing("/e/first", other, lambda _: None, answers="q", flags=["--create"])
    assert (status, store.get("/e/first").value) == (7, "theirs\n")


def test_json_that_is_none_any_more_is_asked_about(editing, store):
    store.set("/e/json", '{"a": 1}')
    status, _, err, asked = editing("/e/json", lambda _: '{"a": 1', answers="q")
    assert (status, store.get("/e/json").value) == (7, '{"a": 1}')
    assert asked == ["/e/json: it is no JSON any more: [s]ave [e]dit [q]uit "]
    assert kept(err).suffix == ".json"
    fixed = (lambda _: "{", lambda _: '{"b": 1}')
    assert editing("/e/json", *fixed, answers="e")[0] == 0
    assert json.loads(store.get("/e/json").value) == {"b": 1}


def test_what_is_no_text_is_refused(ctl, store):
    store.set_bytes("/e/bytes", b"\xff")
    words = "kvdctl: /e/bytes: its value is no text: use get --raw and set --raw\n"
    assert ctl("edit", "/e/bytes") == (1, "", words)
    assert ctl("edit", "/e") == (1, "", "kvdctl: /e: is a directory\n")


def test_a_real_editor_without_a_terminal(ctl, store, tmp_path, own_environment):
    own_environment.setattr("tempfile.tempdir", str(tmp_path))
    store.set("/e/real", "one\n")
    script = tmp_path / "ed it"
    script.write_text('#!/bin/sh\necho two >>"$1"\n')
    script.chmod(0o755)
    assert ctl("edit", "/e/real", "--editor", f"'{script}'")[0] == 0
    assert store.get("/e/real").value == "one\ntwo\n"
    for editor, words in (
        ("/nope", "/nope: No such file or directory"),
        ("false", "the editor ended with status 1"),
        ("sh -c 'kill -9 $$'", "signal 9 has ended the editor"),
        ("""sh -c 'rm "$0"'""", "the text cannot be read: No such file or directory"),
        (" ", "the editor is an empty text: name one with --editor, or in $EDITOR"),
    ):
        assert ctl("edit", "/e/real", "--editor", editor) == (1, "", f"kvdctl: {words}\n")
    assert not list(tmp_path.glob("kvdctl-*"))  # the server has all that was in these files
    status, _, err = ctl("edit", "/e/real", "--editor", """sh -c 'printf "\\377" >"$0"'""")
    assert (status, kept(err).read_bytes()) == (1, b"\xff")


def test_no_interleaving_with_another_writer_loses_a_change(editing, store):
    dice = random.Random(11)
    for number in range(INTERLEAVINGS):
        key = f"/r/{number}"
        added = [f"base {line}" for line in range(dice.randint(0, 4))]
        store.set(key, "".join(f"{line}\n" for line in added))

        def others(key=key, added=added, number=number):
            """Sometimes add a line somewhere, as any other careful client does."""
            while dice.random() < 0.4:
                line = f"theirs {number} {len(added)}"
                try:
                    node = store.get(key)
                    lines = node.value.splitlines()
                    lines.insert(dice.randint(0, len(lines)), line)
                    text = "".join(f"{one}\n" for one in lines)
                    store.set(key, text, if_index=node.modified_index)
                except (CompareFailed, KeyNotFound):
                    continue
                added.append(line)

        def mine(text, number=number, others=others):
            others()
            lines = [
                line
                for line in text.splitlines()
                if not line.startswith(("<<<<<<<", "|||||||", "=======", ">>>>>>>"))
            ]
            if f"mine {number}" not in lines:
                lines.insert(dice.randint(0, len(lines)), f"mine {number}")
            others()
            return "".join(f"{line}\n" for line in dict.fromkeys(lines))

        class Answers:
            def __init__(self, others=others):
                self._others = others

            def __iter__(self):
                return self

            def __next__(self):
                self._others()
                return dice.choice("sssdeq")

        status, *_ = editing(key, *[mine] * 50, answers=Answers())
        found = store.get(key).value.splitlines()
        assert set(found) >= set(added)
        assert (f"mine {number}" in found) == (status == 0)
        assert len(found) == len(set(found)) == len(added) + (status == 0)


def test_ctrl_c_belongs_to_the_editor(server, store, tmp_path):
    store.set("/e/interrupt", "old")
    editor = tmp_path / "editor"
    # The terminal sends Ctrl-C to both; an editor has its own use for it.
    editor.write_text('#!/bin/sh\nkill -INT $PPID\nprintf new >"$1"\n')
    editor.chmod(0o700)
    argv = [sys.executable, "-m", "kvd.ctl.main", "-C", server.url, "edit", "/e/interrupt"]
    ended = subprocess.run(
        [*argv, "--editor", editor], cwd=ROOT, capture_output=True, text=True, check=False
    )
    index = store.get("/e/interrupt").modified_index
    assert (ended.returncode, ended.stdout) == (0, f"saved at {index}\n"), ended.stderr
    assert store.get("/e/interrupt").value == "new"


def test_ctrl_c_at_a_question_names_the_file_of_the_text(editing, store):
    store.set("/e/asked", "[1]")

    def interrupted():
        raise KeyboardInterrupt
        yield

    status, out, err, _ = editing("/e/asked", lambda _: "[1", answers=interrupted())
    assert (status, out) == (130, "")
    assert kept(err).read_text() == "[1"
    assert store.get("/e/asked").value == "[1]"
