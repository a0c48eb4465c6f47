"""`tail`: every event once, in order, over restarts of the server and of itself.

With `--state` a file keeps what has been printed: the index, the id of the store, and how much of
the output was written. It is replaced once all that has arrived is printed: first the output is
synced, then the file, so that a power cut leaves no state that is ahead of the output. The index
moves on while only other keys change, so that a quiet key does not fall out of the history. Where
the output is a file too, events that were appended to it behind that, before tail was killed, are
not printed again; an unfinished `--resync` begins again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Generator, Mapping
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kvd.client.errors import HistoryLost
from kvd.client.watches import Watching
from kvd.client.wire import Connect, Operation, Sleep, Step
from kvd.ctl.command import Call, Verb, keys, pass_call
from kvd.ctl.failures import LOST, failure
from kvd.ctl.verbs.history import described
from kvd.storage import disk

if TYPE_CHECKING:
    from kvd.client.model import Event, Node

# The index of an event; the lines of a state have all the same one, which counts at their end.
_INDEX = re.compile(rb'(\d+) \S+ (?!state )|\{"index": (\d+), (?!"action": "state")')


_NOT_WHOLE = (
    "it is empty, cut off or no file of tail --state: name another one, or remove it and name the "
    "first index that is wanted with --since"
)


class _Kept(NamedTuple):
    """The content of the file of `--state`."""

    last: int
    cluster_id: str
    inode: int
    size: int


@click.command(cls=Verb, help="Print every event of a key and of all below it, for ever.")
@click.argument("key", shell_complete=keys)
@click.option("--since", type=click.IntRange(1), metavar="INDEX", help="the first; else the next")
@click.option("--state", metavar="FILE", help="keep the last index there, and go on behind it")
@click.option("--resync", is_flag=True, help="where events are gone: the whole state, and on")
@pass_call
def command(call: Call, *, key: str, since: int | None, state: str | None, resync: bool) -> None:
    """Print every event of a key and of all below it."""
    signal.signal(signal.SIGTERM, _interrupt)
    tail = _Tail(call, key, None if state is None else Path(state))
    tail.begin(since)
    try:
        while True:
            try:
                tail.next()
            except HistoryLost as error:
                if not resync:
                    first = error.first
                    gone = f"events {error.wanted}..{first - 1} are gone"
                    raise failure(f"{gone}, the history begins at {first}", LOST) from error
                tail.resync()
    except KeyboardInterrupt:
        return
    finally:
        tail.keep_printed()


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Tail:
    """The output of one call, and how far it has come."""

    def __init__(self, call: Call, key: str, state: Path | None) -> None:
        self._call = call
        self._key = key
        self._state = state
        self._is_json = call.is_json
        self._is_lost = False
        self._kept = self._printed = 0
        self._watching = self._watch(None)

    def _watch(self, since: int | None, cluster_id: str = "") -> Watching:
        operations = self._call.session.operations
        return Watching(operations, self._key, since, recursive=True, cluster_id=cluster_id)

    def begin(self, since: int | None) -> None:
        """Begin with an index, or behind what the file of `--state` has."""
        kept = None if self._state is None else _read(self._state)
        if kept is None:
            self._watching = self._watch(since)
            if self._watching.index is not None:
                self._keep(self._watching.index)
        else:
            self._kept = max(kept.last, _written(kept))
            self._watching = self._watch(self._kept + 1, kept.cluster_id)

    def next(self) -> None:
        """Wait for the next event and print it."""
        event = self._call.session.run(self._noticing(self._watching.next()))
        self._print(event.index, event.action, event.node, event)
        self._printed = event.index

    def keep_printed(self) -> None:
        """Keep the index of the last event that is printed, at the end."""
        if self._printed > self._kept:
            self._keep(self._printed)

    def resync(self) -> None:
        """Print the whole state, and watch from there on."""
        operations = self._call.session.operations
        nodes, index, cluster_id = self._call.session.run(operations.all_below(self._key))
        for node in nodes.values():
            self._print(index, "state", node, None)
        self._watching = self._watch(index + 1, cluster_id)
        self._keep(index)

    def _noticing(self, operation: Operation[Event]) -> Operation[Event]:
        """Take the steps of an operation, and tell of a lost server and of its return."""
        return _watched(operation, self._keep_moved, self._notice)

    def _keep_moved(self) -> None:
        """Keep the index once it has moved on, by events of the key or of others."""
        index = self._watching.index or 0
        if index > self._kept:  # between two steps each event up to here is printed
            self._keep(index)

    def _notice(self, step: Step, *, has_failed: bool) -> None:
        index = self._watching.index
        place = "" if index is None else f" at {index}"
        if isinstance(step, Sleep) and not self._is_lost:
            self._is_lost = True
            sys.stderr.write(f"lost the server{place}\n")
        elif isinstance(step, Connect) and self._is_lost and not has_failed:
            self._is_lost = False
            sys.stderr.write(f"back{place}\n")

    def _print(self, index: int, action: str, node: Node, event: Event | None) -> None:
        if self._is_json:
            line = json.dumps(_fields(index, action, node, event), ensure_ascii=False)
        else:
            now = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
            key = f"{node.key}/" if node.dir else node.key
            line = described(index, now, action, key, node.value)
        # One system call; of a long line a kill may leave a part, which the next start cuts.
        sys.stdout.flush()
        sys.stdout.buffer.write(line.encode("utf-8", "replace") + b"\n")
        sys.stdout.buffer.flush()

    def _keep(self, index: int) -> None:
        if self._state is not None:
            self._write(self._state, index)
        self._kept = index

    def _write(self, state: Path, index: int) -> None:
        output = _output()
        if output is not None:  # an event that is lost with the output must not be kept as printed
            os.fdatasync(sys.stdout.fileno())
        fields = {
            "index": index,
            "cluster": self._watching.cluster_id,
            "output": {"inode": output.st_ino, "size": output.st_size} if output else None,
        }
        try:
            disk.write_file_durably(state, f"{json.dumps(fields)}\n".encode())
        except OSError as error:
            raise failure(f"{state}: {error.strerror}") from None


def _watched(
    operation: Operation[Event], before: Callable[[], None], notice: Any
) -> Generator[Step, Any, Event]:
    try:
        step = operation.send(None)
        while True:
            before()
            try:
                done = yield step
            except BaseException as error:  # noqa: BLE001 -- the operation decides
                notice(step, has_failed=True)
                step = operation.throw(error)
            else:
                notice(step, has_failed=False)
                step = operation.send(done)
    except StopIteration as end:
        event: Event = end.value
        return event
    finally:
        operation.close()


def _fields(index: int, action: str, node: Node, event: Event | None) -> Mapping[str, object]:
    fields: dict[str, object] = {"index": index, "action": action, "key": node.key}
    if node.dir:
        fields["dir"] = True
    if node.value is not None:
        fields["value"] = node.value
    if node.ttl is not None:
        fields["ttl"] = node.ttl
    if event is not None and event.prev_node is not None:
        fields["prevValue"] = event.prev_node.value
    return fields


def _output() -> os.stat_result | None:
    """Return what is known of standard output, if it is a file."""
    try:
        found = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _read(state: Path) -> _Kept | None:
    """Return the content of the file of `--state`; None where there is no file yet.

    Raises:
        Failure: it is not tail's.
    """
    try:
        fields = json.loads(state.read_text(encoding="utf-8"))
        output = fields["output"] or {"inode": 0, "size": 0}
        return _Kept(
            int(fields["index"]), str(fields["cluster"]), int(output["inode"]), int(output["size"])
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failure(f"{state}: {error.strerror}") from None
    except json.JSONDecodeError:
        raise failure(f"{state}: {_NOT_WHOLE}") from None
    except (ValueError, KeyError, TypeError):
        raise failure(f"{state}: it is no file of tail --state: name another one") from None


def _written(kept: _Kept) -> int:
    """Return the last index in the output behind what is kept; 0 where there is none.

    A line that a kill has left unfinished is cut.
    """
    output = _output()
    if output is None or output.st_ino != kept.inode or output.st_size <= kept.size:
        return 0
    with open(f"/proc/self/fd/{sys.stdout.fileno()}", "rb") as file:  # noqa: PTH123 -- a link
        file.seek(kept.size)
        last, end = 0, kept.size
        for line in file:
            if not line.endswith(b"\n"):
                os.ftruncate(sys.stdout.fileno(), end)
                break
            end += len(line)
            if found := _INDEX.match(line):
                last = max(last, int(found[1] or found[2]))
    return last
