"""The system calls of a process, read from the output of strace."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.crash.lab.witness import BEGUN, ENDED

CALLS = (
    *("openat", "mkdir", "rmdir", "write", "pwrite64", "pwritev", "ftruncate", "fallocate"),
    *("rename", "renameat2", "unlink", "unlinkat", "fsync", "fdatasync", "sendto", "sendmsg"),
)
_BEGUN = re.compile(r"(\d+) +(\w+)\((.*)$")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)$")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
OF_FD = re.compile(r"^\d+<((?:\\x[0-9a-f]{2})*)>")
SENT = re.compile(rb"X-Etcd-Index: (\d+)")
DIRECTORY = -1


class Call(NamedTuple):
    """One step of the trace: a call as it begins (`done` False), or as it has returned."""

    name: str
    args: str
    done: bool
    failed: bool
    number: int


def read_trace(path: Path) -> Iterator[Call]:
    """Yield the beginnings and the ends of all calls, in their order.

    A sync of which the server tells (witness.py) is a call of fdatasync.
    """
    syncs: dict[bytes, Call] = {}
    for call in _read(path):
        reported = _reported(call)
        if reported.startswith(BEGUN):
            name = reported.removeprefix(BEGUN)
            args = "0<" + "".join(f"\\x{byte:02x}" for byte in name) + ">)"
            syncs[name] = call._replace(name="fdatasync", args=args)
            yield syncs[name]
        elif reported.startswith(ENDED):
            yield syncs.pop(reported.removeprefix(ENDED))._replace(done=True)
        else:
            yield call


def _reported(call: Call) -> bytes:
    """Return what a server tells by a write to /dev/null, once that has begun, or nothing."""
    if call.name != "write" or call.done:
        return b""
    file, string = OF_FD.match(call.args), STRING.search(call.args)
    is_report = file is not None and unhex(file[1]) == b"/dev/null"
    return unhex(string[1]) if is_report and string is not None else b""


def _read(path: Path) -> Iterator[Call]:
    open_calls: dict[str, tuple[str, str, int]] = {}
    number = 0
    with path.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            if begun := _BEGUN.match(line):
                thread, name, rest = begun.groups()
                number += 1
                if rest.endswith("<unfinished ...>"):
                    open_calls[thread] = name, rest, number
                    yield Call(name, rest, done=False, failed=False, number=number)
                else:
                    yield Call(name, rest, done=False, failed=False, number=number)
                    yield Call(name, rest, done=True, failed=_failed(rest), number=number)
            elif (resumed := _RESUMED.match(line)) and resumed[1] in open_calls:
                name, rest, begun_at = open_calls.pop(resumed[1])
                yield Call(name, rest, done=True, failed=_failed(resumed[3]), number=begun_at)


def _failed(rest: str) -> bool:
    # A call that was cut short by the end of the process has the result `?`.
    return re.search(r"= (-1 |\?)[^=]*$", rest) is not None


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
