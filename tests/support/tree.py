"""A key space over an index, changed by commands and read back, for tests of the index."""

from kvd.storage.format.frame import Position
from kvd.storage.format.records import Change, Kind
from kvd.storage.index.environment import Index
from kvd.storage.index.pending import Pending
from kvd.storage.index.state import State
from kvd.storage.replay import load

NOW_NS = 1_700_000_000_000_000_000
LONG = b"m" * 480


class Tree:
    """A state of its own, written to without a log.

    `way` says when the index is written to: by each scan, by each batch, or not but when asked for.
    """

    def __init__(self, path, way):
        self.index = Index.create(path)
        load(self.index, None)
        self.state = State(self.index)
        self.way = way
        self.refuses = way == "refused"

    def begin(self):
        return Pending(self.state)

    def commit(self, txn):
        place = Position(0, 0, 0, 0)
        txn.seq, txn.chain, txn.time_ns = self.applied.seq + 1, bytes(8), NOW_NS
        self.state.merge(txn, place)
        if self.way == "each batch":
            self.state.flush()

    @property
    def applied(self):
        return self.state.applied

    def do(self, *changes):
        """Perform changes, given without an index, as one batch."""
        txn = self.begin()
        events = [apply(txn, *change) for change in changes]
        self.commit(txn)
        return events

    def flush(self, **options):
        """Have the index take everything."""
        self.refuses = False
        self.state.flush(**options)
        self.refuses = self.way == "refused"

    def rows(self):
        """Number of rows of each table."""
        self.flush()
        with self.index.env.begin() as txn:
            return {
                name.decode(): txn.stat(table)["entries"]
                for name, table in self.index.tables.items()
            }

    def first_due_ns(self):
        self.flush()
        return self.state.flushed().first_due_ns()

    def reclaim(self, limit):
        """Reclaim in transactions of `limit` rows; return how many it took."""
        slices = 0
        while self.state.has_garbage:
            self.flush(free=limit)
            slices += 1
        return slices


def apply(txn, kind, path, value=None, expiration_ns=0):
    """Perform a change whose remaining fields follow from the state."""
    prev = txn.find(path)
    is_dir = value is None and kind not in (Kind.DELETE, Kind.EXPIRE)
    if kind in (Kind.DELETE, Kind.EXPIRE):
        is_dir = bool(prev.dir_id)
    created = prev.created_index if prev and kind != Kind.SET else txn.index + 1
    change = Change(kind, txn.index + 1, path, value, is_dir, created, expiration_ns)
    return txn.apply(change, NOW_NS)


def set_(path, value=b"v", expiration_ns=0):
    return Kind.SET, path, value, expiration_ns


def mkdir(path, expiration_ns=0):
    return Kind.SET, path, None, expiration_ns


def update_dir(path, expiration_ns):
    return Kind.UPDATE, path, None, expiration_ns


def delete(path):
    return Kind.DELETE, path


def names(view, path):
    return [name for name, _ in view.children(view.find(path).dir_id)]


def indexes(view, first=0):
    return [event.change.index for event in view.events(first)]
