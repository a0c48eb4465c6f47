"""Looking into a data directory without a server: what recovery finds there."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from kvd.storage.errors import StorageError
from kvd.storage.format.event import Event
from kvd.storage.format.node import ROOT_ID, CorruptIndex
from kvd.storage.format.records import Kind
from kvd.storage.index.environment import Index
from kvd.storage.index.view import View
from kvd.storage.store import Options, Store
from kvd.storage.tools.restore import state
from kvd.storage.tools.source import reading
from kvd.storage.tools.verify import Verdict, verify
from kvd.testing.crash import Fact, File
from tests.crash.lab.experiment import Violation

SEGMENT_BYTES = 65536

_ACTIONS = {
    Kind.SET: "set",
    Kind.CREATE: "create",
    Kind.UPDATE: "update",
    Kind.COMPARE_AND_SWAP: "compareAndSwap",
    Kind.DELETE: "delete",
    Kind.COMPARE_AND_DELETE: "compareAndDelete",
    Kind.EXPIRE: "expire",
}


class Found(NamedTuple):
    """What recovery made of a directory: its facts and files, or why it refused."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    facts: tuple[Fact, ...]
    files: dict[str, File]
    refusal: str = ""


def recover(directory: Path, *, rebuild_index: bool = False) -> Found:
    """Recover a data directory in this process, as a starting server does."""
    try:
        options = Options(segment_bytes_max=SEGMENT_BYTES, rebuild_index=rebuild_index)
        store = Store.open(directory, options)
    except (StorageError, CorruptIndex, OSError) as error:
        return Found(0, (), {}, f"{type(error).__name__}: {error}")
    except Exception as error:
        raise Violation(f"recovery meets a bug: {error!r}") from error
    try:
        view = store.view
        facts = tuple(fact_of_event(event) for event in view.events(1))
        return Found(store.applied.index, facts, files_of_view(view))
    except CorruptIndex as error:
        return Found(0, (), {}, f"CorruptIndex: {error}")
    finally:
        store.close()


def fact_of_event(event: Event) -> Fact:
    """Return the fact in an event of the store."""
    change, prev, _ = event
    removal = change.kind in (Kind.DELETE, Kind.COMPARE_AND_DELETE, Kind.EXPIRE)
    return Fact(
        change.index,
        _ACTIONS[change.kind],
        change.key.decode(errors="backslashreplace"),
        None if removal or change.dir else (change.value or b"").decode(errors="backslashreplace"),
        change.dir,
        change.created_index,
        None
        if prev is None or prev.dir_id
        else (prev.value or b"").decode(errors="backslashreplace"),
        prev.modified_index if prev else 0,
    )


def files_of_view(view: View) -> dict[str, File]:
    """Return every file of the store."""
    found: dict[str, File] = {}
    waiting = [(ROOT_ID, "")]
    while waiting:
        dir_id, path = waiting.pop()
        for name, node in view.children(dir_id):
            key = f"{path}/{name.decode('utf-8', 'backslashreplace')}"
            if node.dir_id:
                waiting.append((node.dir_id, key))
            else:
                value = (node.value or b"").decode(errors="backslashreplace")
                found[key] = File(value, node.created_index, node.modified_index)
    return found


def digest_of(directory: Path) -> tuple[int, str]:
    """Return the index and the digest of a stopped store's state, from its index on disk."""
    found = Index.reuse(directory / "index")
    if found is None:
        raise Violation("after a clean stop nothing vouches for the index")
    index, _ = found
    try:
        applied, digest = state(index)
    finally:
        index.env.close()
    return applied.index, digest


def verified(directory: Path) -> tuple[bool, bool]:
    """Return whether `kvdctl verify` finds no damage, and whether it says that a start succeeds."""
    findings = []
    try:
        with reading(directory) as source, tempfile.TemporaryDirectory() as scratch:
            findings = list(verify(source, Path(scratch)))
    except StorageError:
        return False, False
    except Exception as error:
        raise Violation(f"`kvdctl verify` meets a bug: {error!r}") from error
    damaged = any(finding.verdict is Verdict.DAMAGED for finding in findings)
    return not damaged, findings[-1].verdict is not Verdict.DAMAGED
