"""Stores for tests of the engine: opened, written to, compared."""

from hashlib import blake2b
from pathlib import Path
from random import Random

from kvd.storage.format.event import Event
from kvd.storage.format.frame import Position
from kvd.storage.format.records import Document, Kind, encode_record
from kvd.storage.index.pending import Pending
from kvd.storage.index.view import View
from kvd.storage.store import Options, Store
from kvd.v2.commands import (
    Command,
    CompareAndDelete,
    CompareAndSwap,
    Create,
    CreateInOrder,
    Delete,
    Set,
    Update,
)
from kvd.v2.errors import ApiError
from kvd.v2.rules import decide, expire

SEGMENT = 64 * 1024
NOW_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
FOREVER_NS = (1 << 63) - 1

LONG = b"l" * 470


def open_store(path: Path, **options: object) -> Store:
    return Store.open(path, Options(**{"segment_bytes_max": SEGMENT} | options))


def write(store: Store, *commands: Command, now_ns: int = NOW_NS) -> list[Event | ApiError]:
    """Run commands as one batch, in the committer's order, and return what became of each."""
    txn = store.begin()
    outcomes, records = run(txn, commands, now_ns)
    commit(store, txn, records, now_ns)
    return outcomes


def run(
    txn: Pending, commands: tuple[Command, ...], now_ns: int
) -> tuple[list[Event | ApiError], list[bytes]]:
    """Decide and apply in a pending transaction; also return the records."""
    outcomes: list[Event | ApiError] = []
    records = []
    for command in commands:
        try:
            change = decide(txn, command, txn.index + 1, now_ns)
        except ApiError as refusal:
            outcomes.append(refusal)
        else:
            records.append(encode_record(change))
            outcomes.append(txn.apply(change, now_ns))
    return outcomes, records


def log_documents(store: Store, *documents: Document, now_ns: int = NOW_NS) -> None:
    """Log documents as one batch."""
    txn = store.begin()
    for document in documents:
        txn.apply(document, now_ns)
    commit(store, txn, [encode_record(document) for document in documents], now_ns)


def sweep(store: Store, now_ns: int) -> list[Event]:
    """Expire what is due, as one batch."""
    txn = store.begin()
    events, records = [], []
    due, next_ns = txn.due(now_ns, 1000)
    for path, node in due:
        if txn.find(path) == node:
            change = expire(path, node, txn.index + 1)
            records.append(encode_record(change))
            events.append(txn.apply(change, now_ns))
    txn.due_ns = next_ns
    commit(store, txn, records, now_ns)
    return events


def commit(store: Store, txn: Pending, records: list[bytes], now_ns: int) -> None:
    if not records:
        txn.end()
        return
    store.journal.encode(txn, records, now_ns)
    position: Position = store.journal.append(txn)
    store.state.merge(txn, position)


def reclaim_all(store: Store) -> None:
    """Free all that hangs below removed directories."""
    store.flush()
    while store.state.has_garbage:
        store.flush(free=100)


def tree(view: View) -> dict[bytes, tuple[object, ...]]:
    """All nodes by path; of a directory not its id, which no client can see."""
    found: dict[bytes, tuple[object, ...]] = {}
    todo = [b"/"]
    while todo:
        path = todo.pop()
        node = view.find(path)
        assert node is not None
        found[path] = (node[:4], bool(node.dir_id))
        if node.dir_id:
            names = [name for name, _ in view.children(node.dir_id)]
            assert names == sorted(names)
            assert bool(names) == view.has_children(node.dir_id)
            prefix = path.rstrip(b"/") + b"/"
            todo += [prefix + name for name in names]
    return found


def history(view: View) -> list[tuple[object, ...]]:
    return [
        (event.change, event.prev and (event.prev[:4], bool(event.prev.dir_id)), event.time_ns)
        for event in view.events(0)
    ]


def dump(store: Store) -> dict[str, object]:
    """All that a restart must bring back, wherever in the log it came from."""
    due = [(path, node[:4]) for path, node in store.begin().due(FOREVER_NS, 1 << 60)[0]]
    view = store.view
    return {
        "nodes": tree(view),
        "ttl": due,
        "events": history(view),
        "entries": view.documents(),
        "applied": store.applied._replace(position=Position(0, 0, 0, 0)),
    }


def digest(store: Store) -> str:
    content = dump(store)
    content["nodes"] = sorted(content["nodes"].items())
    return blake2b(repr(content).encode(), digest_size=16).hexdigest()


NAMES = (b"a", b"b", b"c", b"_h", b"\xff\xfe", LONG, LONG + b"x" * 20, LONG + b"y" * 20)


def random_path(dice: Random) -> bytes:
    weights = (6, 6, 4, 2, 1, 1, 1, 1)
    return b"".join(b"/" + n for n in dice.choices(NAMES, weights, k=dice.randint(1, 4)))


def random_command(dice: Random) -> Command:
    key = random_path(dice) if dice.random() < 0.99 else b"/"
    value = dice.choice((b"", b"1", b"2", b"v" * 300))
    ttl_s = dice.choice((None, None, None, 0, 5, 50, 1 << 40))
    flag = dice.random() < 0.4
    prev_index = dice.choice((0, 0, dice.randint(2, 60)))
    prev_value = dice.choice((None, b"1", b"2", b""))
    refresh = ttl_s is not None and dice.random() < 0.2
    kinds: list[Command] = [
        *[Set(key, b"" if refresh else value, flag, ttl_s, refresh)] * 5,
        *[Create(key, value, flag, ttl_s)] * 2,
        CreateInOrder(key, value, flag, ttl_s),
        *[Update(key, b"" if refresh or flag else value, ttl_s, refresh)] * 2,
        *[CompareAndSwap(key, value, prev_value, prev_index, ttl_s)] * 2,
        *[Delete(key, flag, dice.random() < 0.5)] * 4,
        CompareAndDelete(key, prev_value, prev_index),
    ]
    return dice.choice(kinds)


def random_document(dice: Random) -> Document:
    secret = dice.choice((None, b"", b"hash"))
    content = dice.choice((None, b"{}", b"[1]", b"d" * 300))
    name = dice.choice(("al", "bo", "", "n" * 600, "\N{SNOWMAN}"))
    what = dice.choice(("user", "role", "users"))
    return Document(dice.choice((Kind.AUTH, Kind.MEMBER)), what, name, content, secret)


def live(store: Store, dice: Random, batches: int) -> None:
    """Let a store live a random life of so many batches."""
    now_ns = max(NOW_NS, store.applied.time_ns)
    for _ in range(batches):
        now_ns += dice.choice((1, SECOND_NS))
        write(store, *(random_command(dice) for _ in range(dice.randint(1, 4))), now_ns=now_ns)
        if dice.random() < 0.1:
            sweep(store, now_ns)
        if dice.random() < 0.2:
            log_documents(
                store, *(random_document(dice) for _ in range(dice.randint(1, 3))), now_ns=now_ns
            )
        if dice.random() < 0.1:
            reclaim_all(store)
