"""`kvdctl`: looking at a data directory, repairing it, copying it, and making a new one from it.

Each verb takes the lock that a server takes. Those that only read also take `--force`, to read what
a running server has; `backup` needs none, since the log is append-only. What the verbs do is in
storage/; here are their words.

Exit status: 0, 64 for a wrong command line or a point that cannot be reached, 65 for damaged data,
73 for a directory that is locked or cannot be used, 74 for an I/O error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from kvd.ctl import manual
from kvd.ctl.offline.arguments import command_line, fail
from kvd.descriptors import discard_output, open_standard_descriptors
from kvd.lines import printable
from kvd.logs import TextFormatter
from kvd.storage.directory.detach import detach, replicate_again
from kvd.storage.errors import EX_DATAERR, EX_IOERR, EX_USAGE, StorageError
from kvd.storage.failpoints import NAMES
from kvd.storage.format.node import CorruptIndex
from kvd.storage.tools import repair as repairing
from kvd.storage.tools.backup import backup
from kvd.storage.tools.compact import compact
from kvd.storage.tools.dump import records, rfc3339
from kvd.storage.tools.restore import restore, state
from kvd.storage.tools.source import reading, to_index
from kvd.storage.tools.verify import Verdict, verify
from kvd.storage.usage import usage


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return its exit status."""
    open_standard_descriptors()
    _log_to_stderr()
    os.umask(0o077)
    options = command_line(VERBS).parse_args(argv)
    verb: Callable[[argparse.Namespace], int] = options.run
    try:
        status = verb(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has closed it
        discard_output()
        return 0
    except StorageError as error:
        return fail(repairing.explained(error, options.data), error.exit_status)
    except CorruptIndex as error:
        return fail(str(error), EX_DATAERR)
    except OSError as error:
        return fail(str(error), EX_IOERR)
    return status


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter("kvdctl: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def _say(line: str) -> None:
    sys.stdout.write(printable(line) + "\n")


def _verify(options: argparse.Namespace) -> int:
    damaged = starts = False
    with reading(options.data, force=options.force) as source, _scratch() as scratch:
        for part, verdict, text in verify(source, Path(scratch)):
            _say(f"{verdict:<8} {part}: {text}")
            starts = verdict is not Verdict.DAMAGED  # the last one is about the start
            damaged = damaged or not starts
    if damaged:
        _say(repairing.advice(options.data, starts=starts))
    return EX_DATAERR if damaged else 0


def _dump(options: argparse.Namespace) -> int:
    first, last = options.from_index, options.to_index
    with reading(options.data, force=options.force) as source:
        for record in records(source):
            index = record.get("index")
            is_wanted = isinstance(index, int) and first <= index and not (last and index > last)
            if is_wanted or (index is None and not first and not last):
                _say(json.dumps(record))
    return 0


def _digest(options: argparse.Namespace) -> int:
    with reading(options.data, force=options.force) as source, _scratch() as scratch:
        last = options.to_index
        if last is None:
            index = source.latest(Path(scratch) / "index")
        else:
            index = source.rebuild(
                Path(scratch) / "index", lambda header: header.index <= last, to_index(last)
            )
        try:
            applied, digest = state(index)
        finally:
            index.env.close()
    if last is not None and applied.index != last:
        return fail(f"the log ends with index {applied.index}, before {last}", EX_USAGE)
    _say(f"{digest} {applied.index}")
    return 0


def _repair(options: argparse.Namespace) -> int:
    index = options.truncate_at
    if options.yes:
        cut, kept = repairing.repair(options.data, index)
    else:
        with reading(options.data) as source:
            cut, kept = repairing.plan(source, index), None
    if cut.is_nothing:
        _say(f"the log ends with index {index} already: nothing to cut off")
        return 0
    did = "cut off" if kept else "would cut off"
    if cut.segment is not None and cut.size:
        _say(f"{did} {cut.size} bytes of wal/{cut.segment.name} from offset {cut.offset} on")
    for path in cut.whole:
        _say(f"{did} {path.parent.name}/{path.name}")
    if cut.claim:
        _say(f"{did} index/, which goes up to frame {cut.claim}; a start rebuilds it")
    if kept:
        _say(f"kept in {kept}; the log ends with index {index} now")
    else:
        _say("nothing was changed; --yes does it")
    return 0


def _backup(options: argparse.Namespace) -> int:
    with reading(options.data, force=True) as source:
        made = backup(source, options.destination)
    _say(
        f"{made.size} bytes in {made.files} files, up to frame {made.end.seq}; read back, and good"
    )
    return 0


def _restore(options: argparse.Namespace) -> int:
    with reading(options.data, force=options.force) as source:
        made = restore(source, options.destination, index=options.to_index, time_ns=options.to_time)
    _say(f"index {made.index}, last written {rfc3339(made.time_ns)}, digest {made.digest}")
    _say(f"{options.destination} is a new store, of cluster {made.cluster_id:x}")
    return 0


def _compact(options: argparse.Namespace) -> int:
    before = sum(part.allocated for part in usage(options.data))
    compact(options.data)
    after = sum(part.allocated for part in usage(options.data))
    _say(f"{before} bytes on the disk before, {after} after")
    return 0


def _du(options: argparse.Namespace) -> int:
    with reading(options.data, force=True):
        parts = usage(options.data)
    _say(f"{'on disk':>14} {'length':>14} {'files':>6}  part")
    for part, files, length, allocated in parts:
        _say(f"{allocated:>14} {length:>14} {files:>6}  {part}")
    _say(f"{sum(p.allocated for p in parts):>14} {sum(p.length for p in parts):>14}")
    return 0


def _detach(options: argparse.Namespace) -> int:
    ids = detach(options.data, keep_cluster_id=options.keep_cluster_id)
    _say(f"a store of its own: cluster {ids.cluster_id:x}, member {ids.member_id:x}")
    return 0


def _replicate_again(options: argparse.Namespace) -> int:
    from kvd.replicas.engines import checked_url  # noqa: PLC0415 -- this verb alone needs it

    try:
        url = checked_url(options.engine)
    except ValueError as error:
        return fail(str(error), EX_USAGE)
    made = replicate_again(options.data, url)
    _say(f"the next start with --replicate {made.engine} makes the log there")
    return 0


def _failpoints(_: argparse.Namespace) -> int:
    for name, text in NAMES.items():
        _say(f"{name:<22} {text}")
    return 0


def _help(options: argparse.Namespace) -> int:
    topics = manual.topics()
    if options.topic is None:
        _say("Pages of the manual; `kvdctl help TOPIC` prints one, `kvdctl --help` the verbs:")
        for topic, summary in topics.items():
            _say(f"  {topic:<12} {summary}")
        return 0
    if options.topic not in topics:
        return fail(f"no topic {options.topic!r}; `kvdctl help` lists them", EX_USAGE)
    page = manual.page(options.topic)
    if sys.stdout.isatty():
        page = manual.wrapped(page, shutil.get_terminal_size().columns)
    sys.stdout.write(page)
    return 0


def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kvdctl-")


VERBS = {
    verb.__name__.lstrip("_"): verb
    for verb in (
        *(_verify, _dump, _digest, _repair, _backup, _restore, _compact, _du, _failpoints),
        *(_help, _detach),
    )
} | {"replicate-anew": _replicate_again}
