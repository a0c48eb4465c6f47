"""kvdctl: what it says of a store is what it holds, and what it changes can be taken back."""

import base64
import json

import pytest

from kvd.storage import failpoints
from kvd.storage.format import frame
from kvd.storage.format.records import Document, Kind
from kvd.storage.tools.digest import digest as digest_of
from kvd.v2.commands import Create, Delete, Set
from tests.support.ctl import flip, kvdctl, printed_digest
from tests.support.stores import NOW_NS, SECOND_NS, log_documents, open_store, write


def test_the_digest_changes_with_whatever_a_client_can_see(tmp_path, capsys):
    path = tmp_path / "data"
    seen = set()
    store = open_store(path)
    for command in (
        Set(b"/a", b"1"),
        Set(b"/a", b"1"),  # its index and the history
        Set(b"/a", b"2"),
        Set(b"/a", b"2", ttl_s=5),
        Create(b"/d", b"", dir=True),
        Delete(b"/d", dir=True),
    ):
        write(store, command)
        seen.add(digest_of(store.view))
    user = Document(Kind.AUTH, "user", "al", b"{}", b"hash")
    for document in (user, user._replace(secret=b"other"), user._replace(content=None)):
        log_documents(store, document)
        seen.add(digest_of(store.view))
    assert len(seen) == 8  # without the user it is the store that it was
    held = digest_of(store.view)
    store.start_term(NOW_NS, store.applied.history_limit)
    store.close()
    assert printed_digest(capsys, path) == (held, 7)


def test_what_is_made_belongs_to_its_owner_alone(made, tmp_path, capsys):
    kvdctl(capsys, "backup", made, tmp_path / "backup")
    kvdctl(capsys, "restore", made, tmp_path / "restored")
    entries = [
        entry
        for name in ("backup", "restored")
        for entry in [tmp_path / name, *(tmp_path / name).rglob("*")]
    ]
    assert {entry.stat().st_mode & 0o777 for entry in entries if entry.is_dir()} == {0o700}
    assert {entry.stat().st_mode & 0o777 for entry in entries if entry.is_file()} == {0o600}


def test_the_digest_distinguishes_two_histories_of_one_state(tmp_path):
    seen = set()
    for other in (b"/b", b"/c"):
        store = open_store(tmp_path / other.decode()[1:])
        write(store, Set(b"/a", b"1"))
        write(store, Set(other, b"2"))
        write(store, Delete(other))
        assert [name for name, _ in store.view.children(1)] == [b"a"]
        seen.add(digest_of(store.view))
        store.close()
    assert len(seen) == 2


def test_dump_prints_every_record_and_its_place(tmp_path, capsys):
    store = open_store(tmp_path / "data")
    store.start_term(NOW_NS, 17)
    write(store, Set(b"/a", b"text"), Set(b"/\xff", b"\x00\xfe", ttl_s=5))
    write(store, Delete(b"/a"))
    store.close()
    status, out, _ = kvdctl(capsys, "dump", tmp_path / "data")
    assert status == 0
    term, setting, first, second, third = map(json.loads, out.splitlines())
    assert (term["kind"], term["new_term"], term["position"]) == ("term", 1, 1)
    assert (setting["name"], setting["number"]) == ("history_limit", 17)
    assert (first["kind"], first["index"], first["key"], first["value"]) == ("set", 2, "/a", "text")
    assert base64.b64decode(second["key_base64"]) == b"/\xff"
    assert base64.b64decode(second["value_base64"]) == b"\x00\xfe"
    assert second["expiration_ns"] == NOW_NS + 5 * SECOND_NS
    assert first["frame"] == second["frame"] != third["frame"]
    assert first["time"] == "2023-11-14T22:13:20.000000000Z"
    assert "value" not in third
    for record in (term, first, third):
        file = tmp_path / "data" / record["file"]
        start = record["offset"]
        assert file.read_bytes()[start : start + 4] == frame.FRAME_MAGIC
    _, out, _ = kvdctl(capsys, "dump", "--from-index", 3, "--to-index", 3, tmp_path / "data")
    assert json.loads(out) == second


def test_dump_prints_no_secrets(tmp_path, capsys):
    store = open_store(tmp_path / "data")
    user = Document(Kind.AUTH, "user", "al", b'{"roles":[]}', b"$2a$10$hash")
    log_documents(store, user, user._replace(content=None, secret=None))
    store.close()
    status, out, _ = kvdctl(capsys, "dump", tmp_path / "data")
    assert status == 0
    assert "hash" not in out
    made, gone = map(json.loads, out.splitlines())
    common = {"kind": "auth", "what": "user", "name": "al"}
    assert made.items() >= {**common, "document": '{"roles":[]}', "secret": "REDACTED"}.items()
    assert gone.items() >= {**common, "removed": True}.items()
    assert not made["removed"]
    assert not {"document", "secret"} & gone.keys()


def test_dump_prints_what_is_good_before_the_damage(data, capsys):
    flip(sorted((data / "wal").glob("*.wal"))[2], 4200)
    status, out, err = kvdctl(capsys, "dump", data)
    assert status == 65
    assert len(out.splitlines()) > 5
    assert "Last good: index" in err


def test_compact_keeps_the_present_and_lets_go_of_the_past(data, capsys):
    held = printed_digest(capsys, data)
    log_before = sum(file.stat().st_size for file in (data / "wal").iterdir())
    status, out, err = kvdctl(capsys, "compact", data)
    assert (status, err) == (0, "")
    before, after = (int(word) for word in out.split() if word.isdigit())
    assert after < before
    assert sum(file.stat().st_size for file in (data / "wal").iterdir()) < log_before / 2
    assert printed_digest(capsys, data) == held
    assert kvdctl(capsys, "verify", data)[0] == 0
    store = open_store(data)
    assert store.recovery.source == "clean stop"
    write(store, Set(b"/on", b""), now_ns=store.applied.time_ns)
    store.close()


def test_compact_of_an_empty_store_and_of_one_with_a_torn_tail(tmp_path, capsys):
    open_store(tmp_path / "empty").close()
    store = open_store(tmp_path / "torn")
    write(store, Set(b"/a", b"1"))
    end = store.wal.position.offset
    store.close()
    (tmp_path / "torn" / "index" / "CLEAN").unlink()
    (segment,) = (tmp_path / "torn" / "wal").glob("*.wal")
    with segment.open("r+b") as file:
        file.seek(end + 48)  # behind the heartbeat that may follow
        file.write(b"half a frame")
    for name, index in (("empty", 1), ("torn", 2)):
        status, _, err = kvdctl(capsys, "compact", tmp_path / name)
        assert (status, err) == (0, "")
        assert printed_digest(capsys, tmp_path / name)[1] == index
        assert kvdctl(capsys, "verify", tmp_path / name)[0] == 0
    kept = next((tmp_path / "torn" / "quarantine").iterdir())
    assert b"half a frame" in kept.read_bytes()


def test_du_adds_up(data, capsys):
    status, out, _ = kvdctl(capsys, "du", data)
    assert status == 0
    *parts, total = (line.split() for line in out.splitlines()[1:])
    assert {part[3] for part in parts} >= {"FORMAT", "index/", "snap/", "wal/"}
    assert sum(int(part[1]) for part in parts) == int(total[1])
    assert int(total[1]) == sum(f.stat().st_size for f in data.rglob("*") if f.is_file())


def test_failpoints_names_every_failpoint(capsys):
    _, out, _ = kvdctl(capsys, "failpoints")
    assert [line.split()[0] for line in out.splitlines()] == list(failpoints.NAMES)


@pytest.mark.parametrize(
    "argv",
    [["repair", "x"], ["restore", "--to-time", "noon", "a", "b"], ["digest"]],
    ids=["no index", "no time", "no directory"],
)
def test_a_wrong_command_line_ends_with_the_status_for_that(capsys, argv):
    status, out, err = kvdctl(capsys, *argv)
    assert (status, out) == (64, "")
    assert err.startswith("kvdctl: ")


@pytest.mark.parametrize("verb", ["verify", "dump", "digest", "compact", "du", "repair"])
def test_what_is_no_data_directory_is_left_alone(tmp_path, capsys, verb):
    options = ["--truncate-at", "5", "--yes"] if verb == "repair" else []
    for path in (tmp_path / "missing", tmp_path):
        status, _, err = kvdctl(capsys, verb, *options, path)
        assert status in {65, 73}
        assert str(path) in err
    assert not list(tmp_path.iterdir())
