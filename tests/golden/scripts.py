"""Golden scripts of the engine: `tests/golden/engine/*.txt`, commands with what came of them.

    .venv/bin/python -m tests.golden.scripts --renew

writes each text again as it is now; so a new step is a line that is added by hand, and a change of
a format, of a start or of watches shows in the diff of the texts. The README of tests/golden has
the commands. Random numbers, clocks and ids are fixed.
"""

import asyncio
import logging
import re
import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kvd.core.watch.watchers import Watcher
from kvd.storage import disk
from kvd.storage.errors import StorageError
from kvd.storage.failpoints import Faults
from kvd.storage.format import frame
from kvd.storage.format.frame import PAGE_SIZE, WAL_MAGIC, FrameState, Parsed
from kvd.storage.format.identity import NewIds
from kvd.storage.format.records import Document, Kind
from kvd.storage.store import Store
from kvd.storage.wal import slow_syncs
from kvd.v2 import commands
from kvd.v2.errors import ApiError
from kvd.v2.response import ACTIONS
from tests.support.committing import Engine, started
from tests.support.stores import NOW_NS, SECOND_NS, log_documents, open_store, sweep, write

TEXTS = Path(__file__).parent / "engine"

_IDS = NewIds(cluster_id=0xC1, member_id=0x3E)
_UUID = "00112233445566778899aabbccddeeff"
_SALT = 0x5A17
_LINE = 16
_FLAGS = {1: "not synced", 2: "seal", 8: "snapshot", 16: "heartbeat"}


class Script:
    """An interpreter of commands; `do` returns the lines that come of one."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "data"
        self.now_ns = NOW_NS

    async def do(self, name: str, words: list[str]) -> list[str]:
        raise NotImplementedError

    async def begin(self) -> None:
        """Start what the commands are about."""

    async def end(self) -> None:
        """Stop it."""


def command_of(words: list[str]) -> Any:
    """A command of `kvd.v2.commands` by its name: `Set /a 1 ttl_s=5`, a flag by its name."""
    kind = getattr(commands, words[0])
    given = [word.encode() for word in words[1:] if "=" not in word and word not in kind._fields]
    named: dict[str, object] = {word: True for word in words[1:] if word in kind._fields}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if equals:
            named[name] = value.encode() if name == "prev_value" else int(value)
    if kind in (commands.CompareAndSwap, commands.CompareAndDelete):
        named = {"prev_value": None, "prev_index": 0} | named
    return kind(*given, **named)


def batch_of(words: list[str]) -> list[Any]:
    """The commands of one batch, which `;` separates."""
    groups = groupby(words, key=lambda word: word == ";")
    return [command_of(list(group)) for is_end, group in groups if not is_end]


def outcome_line(outcome: object) -> str:
    if isinstance(outcome, ApiError):
        return f"refused: {outcome.code} {outcome.cause.decode()}, index {outcome.index}"
    change = outcome.change  # type: ignore[attr-defined]
    return f"{ACTIONS[change.kind].decode()} {change.key.decode()}, index {change.index}"


# The bytes of the log.


def hex_dump(data: bytes, start: int) -> Iterator[str]:
    """The lines of a hex dump; `*` is for further lines of the same bytes."""
    last = b""
    for at in range(0, len(data), _LINE):
        row = data[at : at + _LINE]
        if row != last:
            shown = "".join(chr(byte) if 0x20 < byte < 0x7F else "." for byte in row)
            yield f"  {start + at:05x}  {row.hex(' ', 4):35}  {shown}"
            is_marked = False
        elif not is_marked:
            yield "  *"
            is_marked = True
        last = row


class LogScript(Script):
    """Changes on one side, the bytes of the log on the other."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.store: Store | None = None
        self.shown: dict[str, int] = {}

    async def do(self, name: str, words: list[str]) -> list[str]:
        lines: list[str] = []
        match name:
            case "open":
                with patch("kvd.storage.journal.has_sha256", lambda: words != ["blake2b"]):
                    self.store = open_store(self.path, new_ids=_IDS)
                self.store.start_term(self.now_ns, 1000)
            case "close":
                self.opened.close()
                self.store = None
            case "wait":
                self.now_ns += int(float(words[0]) * SECOND_NS)
            case "expire":
                lines = [outcome_line(event) for event in sweep(self.opened, self.now_ns)]
            case "document":
                of, id_, content, secret = words
                log_documents(
                    self.opened,
                    Document(Kind.AUTH, of, id_, content.encode(), secret.encode()),
                    now_ns=self.now_ns,
                )
            case "heartbeat":
                self.opened.heartbeat()
            case "large":
                set_ = commands.Set(words[0].encode(), b"x" * int(words[1]))
                lines = [outcome_line(one) for one in write(self.opened, set_, now_ns=self.now_ns)]
            case _:
                batch = batch_of([name, *words])
                lines = [
                    outcome_line(one) for one in write(self.opened, *batch, now_ns=self.now_ns)
                ]
        return lines + list(self.new_bytes())

    @property
    def opened(self) -> Store:
        assert self.store is not None
        return self.store

    async def end(self) -> None:
        if self.store is not None:
            self.store.abandon()

    def new_bytes(self) -> Iterator[str]:
        """What has been written to the segments since the last call."""
        for path in sorted((self.path / "wal").glob("*.wal")):
            data = path.read_bytes()
            at = self.shown.get(path.name)
            if at is None:
                yield f"{path.name}: header"
                yield from hex_dump(data[:PAGE_SIZE], 0)
                at = PAGE_SIZE
            salt = frame.decode_segment_header(data[:PAGE_SIZE], magic=WAL_MAGIC).salt
            while (parsed := frame.parse(data, at, salt)).state is FrameState.INTACT:
                yield describe(parsed)
                yield from hex_dump(data[at : at + parsed.size], at)
                at += parsed.size
            assert not any(data[at:])
            self.shown[path.name] = at


def describe(parsed: Parsed) -> str:
    flags = "".join(f", {text}" for bit, text in _FLAGS.items() if parsed.flags & bit)
    return (
        f"frame {parsed.seq}: first index {parsed.first_index}, records {parsed.records}{flags},"
        f" payload {len(parsed.payload)} bytes"
    )


# What starts do.


class Passing(Faults):
    """Notes the places that a store passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[str] = []

    def reach(self, name: str) -> None:
        self.passed.append(name)


class Lines(logging.Handler):
    """Keeps the lines that are logged."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == slow_syncs.__name__:
            return  # slow syncs are those of a busy machine
        text = f"{record.levelname} {record.getMessage()}"
        self.lines.append(masked(text, self.directory))


def masked(text: str, directory: Path) -> str:
    text = text.replace(f"{directory}/", "")
    text = re.sub(r"\d{8}T\d{6}Z", "TIME", text)
    text = re.sub(r"checksum \(\w+, expected \w+\)", "checksum (CRC, expected CRC)", text)
    text = re.sub(r"\bprocess \d+ on \S+", "process PID on HOST", text)
    return re.sub(r"\b\d+\.\d+ s\b", "SECONDS s", text)


@contextmanager
def logged(directory: Path) -> Iterator[list[str]]:
    handler = Lines(directory)
    logger = logging.getLogger("kvd.storage")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class RecoveryScript(Script):
    """Ends of a store, damage, and the steps of the starts that follow."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.store: Store | None = None

    async def do(self, name: str, words: list[str]) -> list[str]:
        if name == "start":
            return list(self.start())
        if name in ("flip", "append", "remove"):
            self.damage(name, words)
            return []
        store = self.store
        assert store is not None
        match name:
            case "stop":
                store.close()
                self.store = None
            case "kill":
                store.abandon()
                self.store = None
            case "snapshot":
                store.flush()
                store.snapshot()
            case "heartbeat":
                store.heartbeat()
            case _:
                return [outcome_line(one) for one in write(store, *batch_of([name, *words]))]
        return []

    async def end(self) -> None:
        if self.store is not None:
            self.store.abandon()

    def start(self) -> Iterator[str]:
        """Open the store; yield what it logs and passes, what it found, and the files then."""
        faults = Passing()
        with logged(self.path.parent) as lines:
            try:
                self.store = open_store(self.path, new_ids=_IDS, faults=faults)
            except StorageError as error:
                yield from lines
                yield f"{type(error).__name__}: {masked(str(error), self.path.parent)}"
            else:
                yield from lines
        yield f"passed: {', '.join(faults.passed)}"
        if self.store is not None:
            source, records = self.store.recovery
            index = self.store.applied.index
            yield f"recovered index {index} from {source}, {records} log records replayed"
        for path in sorted(self.path.rglob("*")):
            if path.is_file():
                yield f"  {masked(str(path), self.path)}"

    def damage(self, name: str, words: list[str]) -> None:
        """Damage the newest file that matches a pattern."""
        pattern, *rest = words
        path = sorted(self.path.glob(pattern))[-1]
        if name == "remove":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        data = bytearray(path.read_bytes())
        if name == "append":  # behind the last frame, in front of the zeros
            end = len(data.rstrip(b"\0")) + 7 & ~7
            text = rest[0].encode()
            data[end : end + len(text)] = text
        else:  # a bit of where a text is
            data[data.index(rest[0].encode())] ^= 1
        path.write_bytes(data)


# What watchers receive.


class Sink:
    """Notes what one watcher receives."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self.name, self.lines = name, lines

    def begin(self, index: int) -> None:
        self.lines.append(f"{self.name} begins at index {index}")

    def deliver(self, body: bytes) -> None:
        self.lines.append(f"{self.name} receives {body.decode().strip()}")

    def ready(self, _: object) -> bool:
        return True

    def end(self) -> None:
        self.lines.append(f"{self.name} ends without an event")


class WatchScript(Script):
    """Watchers, changes, and the deliveries in their order."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.lines: list[str] = []
        self.watchers: dict[str, Watcher] = {}
        self.stack = AsyncExitStack()
        self.engine: Engine

    async def begin(self) -> None:
        self.engine = await self.stack.enter_async_context(started(self.path))

    async def end(self) -> None:
        await self.stack.aclose()

    async def do(self, name: str, words: list[str]) -> list[str]:
        self.lines.clear()
        hub = self.engine.hub
        match name:
            case "watch":
                watcher, key, *options = words
                watch = command_of(["Watch", key, *options])
                try:
                    self.watchers[watcher] = hub.watch(watch, Sink(watcher, self.lines))
                except ApiError as refusal:
                    self.lines.append(outcome_line(refusal))
            case "leave":
                hub.forget(self.watchers.pop(words[0]))
            case "end":
                hub.end_all()
            case "wait":
                self.engine.clock.time_ns += int(words[0]) * SECOND_NS
            case _:
                outcomes = await self.engine.run(*batch_of([name, *words]))
                self.lines += map(outcome_line, outcomes)
        # Deliveries and reads of history take a turn of the loop each.
        for _ in range(50):
            await asyncio.sleep(0)
        return [*self.lines, f"registered: {hub.count}"]


SCRIPTS: dict[str, type[Script]] = {
    "wal": LogScript,
    "recovery": RecoveryScript,
    "watches": WatchScript,
}


@asynccontextmanager
async def beginning(name: str) -> AsyncIterator[Script]:
    with tempfile.TemporaryDirectory(prefix="kvd-golden-") as directory:
        script = SCRIPTS[name](Path(directory))
        with (
            patch.object(secrets, "randbits", lambda _: _SALT),
            patch.object(secrets, "token_hex", lambda _: _UUID),
            patch.object(disk, "wall_clock_ns", lambda: NOW_NS),
        ):
            await script.begin()
            try:
                yield script
            finally:
                await script.end()


async def _play(name: str, text: str) -> str:
    kept = []
    async with beginning(name) as script:
        for line in text.splitlines():
            if line.startswith("> "):
                kept.append(line)
                command, *words = shlex.split(line[2:])
                kept += await script.do(command, words)
            elif not line or line.startswith("#"):
                kept.append(line)
    return "\n".join(kept) + "\n"


def play(name: str, text: str) -> str:
    """Return a text with what comes of its commands now."""
    return asyncio.run(_play(name, text))


def text_of(name: str) -> Path:
    return TEXTS / f"{name}.txt"


def main() -> None:
    if sys.argv[1:] != ["--renew"]:
        sys.exit("usage: python -m tests.golden.scripts --renew")
    for name in SCRIPTS:
        path = text_of(name)
        path.write_text(play(name, path.read_text()))


if __name__ == "__main__":
    main()
