"""What is read from the files of an etcd is what it has answered."""

import contextlib
import json
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kvd.migrate import times
from kvd.migrate.content import Content
from kvd.migrate.errors import Damaged, Refused, Running
from kvd.migrate.etcd import crc32c, protobuf
from kvd.migrate.etcd.directory import read
from kvd.storage.format.records import Kind
from tests.migrate.conftest import unpacked
from tests.support.etcd import OTHERS, free_ports, state, write_at_random


def shown(content: Content) -> dict[str, Any]:
    """Nodes and index as `tests.support.etcd.state` has them."""
    nodes = {}
    for path, node in content.nodes.items():
        value = None if node.value is None else node.value.decode()
        ends = times.render(node.expiration_ns) if node.expiration_ns else None
        fields = [value, True if node.dir_id else None, node.created_index, node.modified_index]
        nodes[path.decode()] = [*fields, ends]
    return {"index": content.index, "nodes": nodes}


def received(directory: Path) -> dict[str, Any]:
    """What the etcd said, with all nine digits of its times."""
    found: dict[str, Any] = json.loads((directory / "told.json").read_text())
    return padded(found)


def padded(found: dict[str, Any]) -> dict[str, Any]:
    for fields in found["nodes"].values():
        fields[-1] = fields[-1] and times.render(times.parse(fields[-1]))
    return found


def without_snapshots(directory: Path) -> Path:
    for path in (directory / "member" / "snap").glob("*.snap"):
        path.unlink()
    return directory


def test_a_snapshot_and_the_log_behind_it_give_what_etcd_showed(recorded):
    found = read(recorded)
    assert shown(found.content) == received(recorded)
    assert found.snapshot is not None
    assert (found.version, found.of_v3, found.uncommitted, found.tail) == ("3.4", 1, 0, None)


def test_the_whole_log_gives_the_same(recorded):
    with_snapshot = read(recorded).content
    found = read(without_snapshots(recorded))
    assert found.snapshot is None
    assert found.content.nodes == with_snapshot.nodes
    assert found.content.documents == with_snapshot.documents
    assert found.content.raft_index == with_snapshot.raft_index
    # The history is longer, and its changes are the same.
    events = found.content.events
    assert [e.change.index for e in events] == list(range(2, found.content.index + 1))
    late = {e.change.index: (e.change, e.prev) for e in with_snapshot.events}
    assert {e.change.index: (e.change, e.prev) for e in events if e.change.index in late} == late


def test_other_versions_of_etcd_are_read_as_they_showed_themselves(recorded_by_other):
    found = read(recorded_by_other)
    assert shown(found.content) == received(recorded_by_other)
    assert found.snapshot is not None
    assert (found.uncommitted, found.tail) == (0, None)
    users = {d.name: d.secret for d in found.content.documents if d.what == "user"}
    assert set(users) == {"root", "al"}
    assert all(secret.startswith(b"$2a$") for secret in users.values())
    assert shown(read(without_snapshots(recorded_by_other)).content) == received(recorded_by_other)


def test_a_directory_keeps_its_ttl_in_etcd_3_5_only(tmp_path):
    """Up to 3.4 an update changes it; 3.5 refuses that, and has no index for it."""
    ends = {}
    for version, archive in OTHERS.items():
        nodes = read(unpacked(archive, tmp_path / version)).content.nodes
        ends[version] = nodes[b"/updated"].expiration_ns
        assert nodes[b"/updated"].dir_id
    assert ends["3.3.25"]
    assert not ends["3.5.30"]


def test_a_directory_of_etcd_2_is_read(recorded, tmp_path):
    """Its frames have no padding, and it need not have `member`."""
    expected = shown(read(recorded).content)
    for path in (recorded / "member" / "wal").iterdir():
        path.write_bytes(without_padding(path.read_bytes()))
    for room in ("snap", "wal"):
        (recorded / "member" / room).rename(recorded / room)
    (recorded / "member").rmdir()
    assert shown(read(recorded).content) == expected


def without_padding(content: bytes) -> bytes:
    """The frames of a segment as etcd 2 has written them."""
    frames, at = [], 0
    while word := int.from_bytes(content[at : at + 8], "little"):
        length, top = word & ((1 << 56) - 1), word >> 56
        frames.append(length.to_bytes(8, "little") + content[at + 8 : at + 8 + length])
        at += 8 + length + (top & 7)
    return b"".join(frames) + bytes(1024)


def test_users_keep_their_hashes_and_what_means_less_in_kvd_is_said(recorded):
    found = read(recorded)
    by_name = {(d.what, d.name): d for d in found.content.documents}
    assert set(by_name) == {
        ("user", "al"), ("user", "root"), ("role", "readers"), ("setting", "auth"),
    }  # fmt: skip
    assert by_name["user", "al"].secret.startswith(b"$2a$")
    assert b"secret" not in by_name["user", "al"].content
    assert any("readers has an empty pattern" in note for note in found.notes)


def test_the_ids_are_those_of_the_member(recorded):
    ids = read(recorded).content.ids
    assert ids is not None
    assert ids.cluster_id
    assert ids.member_id


def test_events_of_the_cluster_become_refreshes_of_a_hidden_key(recorded):
    events = read(without_snapshots(recorded)).content.events
    fillers = [e for e in events if e.change.key == b"/_etcd"]
    assert fillers
    assert {(e.change.kind, e.change.refresh) for e in fillers} == {(Kind.SET, True)}


def test_the_table_and_the_library_agree(recorded):
    content = next((recorded / "member" / "wal").iterdir()).read_bytes()
    assert crc32c.extend_by_table(7, content[:3000]) == crc32c.extend(7, content[:3000])
    assert crc32c.extend_by_table(0, b"123456789") == 0xE3069283  # RFC 3720


# Damage. What was read is a prefix of the history, and said to be one, or nothing is read.


_NAMES_A_PLACE = re.compile(r"(wal|snap)/\S+: offset \d+: |wal: the log |: holds no keys")


def is_reported_or_equal(directory: Path, whole: Content) -> str:
    """Read a damaged directory; how that ended."""
    try:
        found = read(directory)
    except (Damaged, Refused) as error:
        return "refused" if _NAMES_A_PLACE.search(str(error)) else str(error)
    content = found.content
    if content.raft_index == whole.raft_index:
        assert (content.nodes, content.index) == (whole.nodes, whole.index)
        # Without its snapshot the whole log is replayed, which has more events.
        late = {event.change.index: event[:2] for event in content.events}
        assert {event.change.index: event[:2] for event in whole.events}.items() <= late.items()
        return "noted" if any("read instead" in note for note in found.notes) else "harmless"
    events = {event.change.index: event for event in whole.events}
    for event in content.events:
        assert events.get(event.change.index, event)[0] == event.change
    if found.tail:
        return "torn"
    return "noted" if any("may be missing" in note for note in found.notes) else "silent"


def segment(recorded: Path) -> Path:
    (path,) = (recorded / "member" / "wal").iterdir()
    return path


def outcomes_of(recorded: Path, file: Path, damages: Iterable[bytes]) -> Counter[str]:
    """How reading ends with each of these contents of a file."""
    whole, original = read(recorded).content, file.read_bytes()
    outcomes: Counter[str] = Counter()
    for damaged in damages:
        file.write_bytes(damaged)
        outcomes[is_reported_or_equal(recorded, whole)] += 1
    file.write_bytes(original)
    return outcomes


def flipped(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """A content with one bit flipped, not in the zeros at its end."""
    random = Random(seed)
    bits = 8 * len(content.rstrip(b"\0"))
    for _ in range(count):
        place = random.randrange(bits)
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        yield bytes(damaged)


def truncated(content: bytes, lengths: Iterable[int]) -> Iterator[bytes]:
    """A content that ends earlier."""
    for length in lengths:
        yield content[:length]


def unwritten(content: bytes, lengths: Iterable[int]) -> Iterator[bytes]:
    """A content of which the rest was never written."""
    for length in lengths:
        yield content[:length] + bytes(len(content) - length)


def test_a_flipped_bit_of_the_log_is_refused_reported_or_harmless(recorded):
    file = segment(recorded)
    outcomes = outcomes_of(recorded, file, flipped(file.read_bytes(), 150, seed=3))
    assert outcomes["silent"] == 0
    assert outcomes["refused"] > 130


def test_a_flipped_bit_of_a_snapshot_is_noted(recorded):
    (file,) = (recorded / "member" / "snap").glob("*.snap")
    assert set(outcomes_of(recorded, file, flipped(file.read_bytes(), 20, seed=3))) == {"noted"}


@pytest.mark.parametrize(
    ("number", "place"),
    [(b"1e999", "CurrentIndex"), (b"9" * 30, "CurrentIndex"), (b"9" * 30, "Size"), (b"-1", "Size"),
     (b"1e999", "CreatedIndex"), (b"9" * 30, "ModifiedIndex"), (b"9" * 30, "modifiedIndex")],
)  # fmt: skip
def test_a_number_of_a_snapshot_that_is_none_of_etcds_is_refused_or_harmless(
    recorded, number, place
):
    (file,) = (recorded / "member" / "snap").glob("*.snap")
    outer = protobuf.decode(file.read_bytes(), {1: protobuf.VARINT, 2: protobuf.BYTES})
    inside = protobuf.decode(protobuf.data(outer, 2), {1: protobuf.BYTES, 2: protobuf.BYTES})
    store, meta = protobuf.data(inside, 1), protobuf.data(inside, 2)
    pattern = b'("%b":)\\d+' % place.encode()
    assert re.search(pattern, store)
    inner = sealed(1, re.sub(pattern, rb"\g<1>" + number, store, count=1)) + sealed(2, meta)
    file.write_bytes(b"\x08" + varint(crc32c.extend(0, inner)) + sealed(2, inner))
    with contextlib.suppress(Damaged):
        read(recorded)


def sealed(field: int, content: bytes) -> bytes:
    return bytes((field << 3 | 2,)) + varint(len(content)) + content


def varint(number: int) -> bytes:
    found = b""
    while number >= 0x80:
        found += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return found + bytes((number,))


def test_a_truncated_log_is_refused_or_a_prefix_that_is_reported(recorded):
    without_snapshots(recorded)
    file = segment(recorded)
    content = file.read_bytes()
    size = len(content.rstrip(b"\0"))
    lengths = [*Random(5).sample(range(size), 60), *range(size - 40, size)]
    outcomes = outcomes_of(recorded, file, truncated(content, lengths))
    assert outcomes.keys() <= {"refused", "torn", "noted", "harmless"}
    assert outcomes["torn"]
    # Where a record ends, no reader can tell that others have followed.
    outcomes = outcomes_of(recorded, file, unwritten(content, lengths))
    assert outcomes.keys() <= {"refused", "torn", "harmless", "silent"}
    assert outcomes["silent"] < 5


@pytest.mark.durability_full
def test_thousands_of_flipped_bits_and_all_truncations_are_refused_reported_or_harmless(recorded):
    file = segment(recorded)
    content = file.read_bytes()
    outcomes = outcomes_of(recorded, file, flipped(content, 2000, seed=4))
    assert outcomes.keys() <= {"refused", "torn", "harmless"}
    without_snapshots(recorded)
    lengths = range(len(content.rstrip(b"\0")))
    outcomes = outcomes_of(recorded, file, truncated(content, lengths))
    assert outcomes.keys() <= {"refused", "torn", "noted", "harmless"}


# What is refused, with its reason.


def test_a_log_without_its_end_is_refused(recorded):
    segment(recorded).write_bytes(segment(recorded).read_bytes()[:3000])
    with pytest.raises(Damaged, match="the log ends with entry"):
        read(recorded)


def test_a_missing_segment_is_refused(recorded):
    file = segment(recorded)
    shutil.copy(file, file.with_name(f"{2:016x}-{200:016x}.wal"))
    with pytest.raises(Damaged, match="segments are missing"):
        read(recorded)


def test_a_damaged_last_record_is_imported_without_it_on_demand(recorded):
    file = segment(recorded)
    content = bytearray(file.read_bytes())
    size = len(content.rstrip(b"\0"))
    content[size - 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(Damaged, match=r"offset \d+: .*--drop-tail"):
        read(recorded)
    found = read(recorded, drop_tail=True)
    assert found.tail is not None


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (["log", "conf", "snapshot/"], "is of etcd 0.4"),
        (["x"], "is no data directory of etcd"),
        (["member/snap/", "member/wal/"], "there is no log"),
    ],
    ids=["0.4", "other", "empty"],
)
def test_other_directories_are_refused(tmp_path, made, reason):
    for name in made:
        place = tmp_path / "data" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir() if name.endswith("/") else place.touch()
    with pytest.raises((Refused, Damaged), match=reason):
        read(tmp_path / "data")


# A real etcd, where there is one.


def test_a_running_etcd_is_refused_unless_forced(tmp_path, start_etcd):
    etcd = start_etcd(tmp_path / "data")
    etcd.client.put("/a", "1")
    with pytest.raises(Running, match="stop it, or import from its URL"):
        read(etcd.directory)
    assert read(etcd.directory, force=True).content.nodes[b"/a"].value == b"1"
    etcd.stop()
    assert read(etcd.directory).content.nodes[b"/a"].value == b"1"


@pytest.mark.clients
@pytest.mark.parametrize("seed", range(4))
def test_random_writes_over_restarts_are_read_as_etcd_shows_them(tmp_path, start_etcd, seed):
    random = Random(seed)
    etcd = start_etcd(tmp_path / "data", "--snapshot-count=700")
    refused = 0
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        refused += write_at_random(etcd.client, random, 800)
        etcd.stop(number)
        etcd.start()
    time.sleep(3)  # what has a TTL of a second ends
    expected = padded(state(etcd.client))
    etcd.stop()
    assert refused > 200
    assert shown(read(etcd.directory).content) == expected
    # Each segment is there, so that the log alone says the same.
    assert shown(read(without_snapshots(etcd.directory)).content) == expected


@pytest.mark.clients
def test_each_member_of_three_gives_the_same_keys(tmp_path, start_etcd):
    peers = free_ports(3)
    cluster = ",".join(f"m{n}=http://127.0.0.1:{port}" for n, port in enumerate(peers))
    members = [
        start_etcd(tmp_path / f"m{n}", "--snapshot-count=100", name=f"m{n}", cluster=cluster,
                   peer=port, wait=False)
        for n, port in enumerate(peers)
    ]  # fmt: skip
    for member in members:
        member.wait()
    write_at_random(members[0].client, Random(9), 600)
    time.sleep(3)
    expected = padded(state(members[0].client))
    for member in members:
        member.stop()
    found = [read(member.directory) for member in members]
    first = found[0].content.raft_index
    # The others may have missed the last entries, which were acknowledged by the first and another.
    whole = [one for one in found if one.content.raft_index >= first]
    assert all(shown(one.content)["nodes"] == expected["nodes"] for one in whole)
    assert len(whole) > 1
    assert len({one.content.ids.member_id for one in found}) == 3
    assert len({one.content.ids.cluster_id for one in found}) == 1
