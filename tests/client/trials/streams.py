"""Trials of `watch` and `follow`: no event is missing or doubled, no state is wrong."""

import asyncio
import itertools
import random
import threading
import time

from kvd import AsyncClient, Client
from kvd.client import Event, HistoryLost, KvdError, OutcomeUnknown, Snapshot
from tests.client.trials.servers import PATIENCE_S, Command, killed, kvd, serving

Figures = dict[str, object]
LAST = "/load/last"
_SHORT_HISTORY = kvd("--event-history-limit=100")


class Writer:
    """Writes without an end, below one directory, and notes what is acknowledged."""

    def __init__(self, url: str) -> None:
        self.acknowledged: dict[int, str] = {}
        self.unknown = 0
        self._url = url
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _write(self) -> None:
        with Client(self._url) as client:
            for number in itertools.count():
                if self._stopped.is_set():
                    return
                try:
                    event = client.set(f"/load/k{number % 10}", str(number))
                    self.acknowledged[event.index] = str(number)
                except OutcomeUnknown:
                    self.unknown += 1
                except KvdError:
                    continue


class Reader:
    """Notes all events of the writer's, from a thread of its own, until that of `LAST`."""

    def __init__(self, url: str, since: int, *, is_async: bool) -> None:
        self.events: list[tuple[int, str | None]] = []
        self.failure: BaseException | None = None
        self._url = url
        self._since = since
        self._is_async = is_async
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            if self._is_async:
                asyncio.run(self._read_async())
            else:
                self._read()
        except BaseException as error:
            self.failure = error

    def _read(self) -> None:
        with Client(self._url) as client, client.watch("/load", since=self._since) as watch:
            for event in watch:
                if self._note(event):
                    return

    async def _read_async(self) -> None:
        async with (
            AsyncClient(self._url) as client,
            client.watch("/load", since=self._since) as watch,
        ):
            async for event in watch:
                if self._note(event):
                    return

    def _note(self, event: Event) -> bool:
        self.events.append((event.index, event.node.value))
        return event.node.key == LAST

    def finish(self) -> list[tuple[int, str | None]]:
        """All of its events, once it has that of `LAST`."""
        self._thread.join(PATIENCE_S)
        assert self.failure is None, self.failure
        assert not self._thread.is_alive(), f"the end never comes after {self.events[-1]}"
        return self.events


def watch(
    command: Command, *, kills: int, pause_s: float, seed: int, is_etcd: bool = False
) -> Figures:
    """Every acknowledged event comes once, in order, to `Client` and to `AsyncClient`."""
    began = time.monotonic()
    with serving(command) as server:
        with Client(server.url) as client:
            since = client.set("/load/first", "0").index
        readers = [Reader(server.url, since, is_async=kind) for kind in (False, True)]
        with Writer(server.url) as writer:
            with killed(server, kills, pause_s, random.Random(seed)):
                pass
            writer.stop()
        with Client(server.url) as client:
            last = client.set(LAST, "0").index
        received = [reader.finish() for reader in readers]
    assert received[0] == received[1]
    indexes = [index for index, _ in received[0]]
    assert indexes == sorted(set(indexes))
    # All writes are below /load: each index has an event. An etcd writes of itself as it starts.
    assert is_etcd or len(indexes) == last + 1 - indexes[0]
    missing = writer.acknowledged.items() - dict(received[0]).items()
    assert not missing, sorted(missing)[:10]
    return {
        "kills": server.kills,
        "acknowledged": len(writer.acknowledged),
        "unknown": writer.unknown,
        "events": len(indexes),
        "seconds": round(time.monotonic() - began),
    }


def slow_reader(*, kills: int, pause_s: float, seed: int) -> Figures:
    """A reader that falls behind a short history gets HistoryLost, and never a gap."""
    dice = random.Random(seed)
    events = lost = 0
    with serving(_SHORT_HISTORY) as server, Client(server.url) as client:
        index = client.set("/load/first", "0").index
        with Writer(server.url) as writer:
            while server.kills < kills or not lost:
                with client.watch("/load", since=index + 1) as watching:
                    try:
                        # All writes are below /load: without a gap, each index has an event.
                        for count in (dice.randrange(1, 300), 50):
                            for event in itertools.islice(watching, count):
                                assert event.index == index + 1
                                index, events = event.index, events + 1
                            time.sleep(dice.uniform(0, pause_s))
                            if server.kills < kills:
                                server.kill()
                    except HistoryLost as error:
                        wanted, lost = error.wanted, lost + 1
                        assert wanted == index + 1
                        index = error.index
            writer.stop()
    return {"kills": server.kills, "events": events, "HistoryLost": lost}


def follow(
    command: Command = _SHORT_HISTORY,
    *,
    changes_max: int = 400,
    kills: int,
    pause_s: float,
    seed: int,
    is_etcd: bool = False,
) -> Figures:
    """A mirror over a short history equals a listing at the same index, after each step."""
    dice = random.Random(seed)
    snapshots = events = 0
    mirror: dict[str, str | None] = {}
    with (
        serving(command) as server,
        Client(server.url) as client,
        client.follow("/m", timeout=PATIENCE_S) as following,
    ):
        for _ in range(kills):
            with killed(server, 1, pause_s, dice):
                _change(client, dice, changes_max)
            while True:
                try:
                    last = client.set("/m/last", str(dice.random())).index
                    break
                except KvdError:
                    continue
            reached = 0
            while reached < last:
                news = next(following)
                reached = news.index
                if isinstance(news, Snapshot):
                    snapshots += 1
                    mirror = {key: node.value for key, node in news.nodes.items()}
                else:
                    events += 1
                    _apply(mirror, news)
            listing = client.ls("/m", recursive=True)
            # An etcd writes of itself as it starts.
            assert listing.index == last or (is_etcd and listing.index > last)
            assert {key: value for key, value in mirror.items() if value is not None} == {
                node.key: node.value for node in listing if not node.dir
            }
    return {"kills": server.kills, "snapshots": snapshots, "events": events}


def _change(client: Client, dice: random.Random, changes_max: int) -> None:
    for _ in range(dice.randrange(1, changes_max)):
        key = f"/m/{dice.randrange(5)}/{dice.randrange(5)}"
        try:
            match dice.randrange(8):
                case 0:
                    client.delete(key.rpartition("/")[0], recursive=True, missing_ok=True)
                case 1:
                    client.delete(key, missing_ok=True)
                case _:
                    client.set(key, str(dice.random()))
        except KvdError:
            continue


def _apply(mirror: dict[str, str | None], event: Event) -> None:
    for key in [key for key in mirror if event.removes(key)]:
        del mirror[key]
    if event.node.value is not None:
        mirror[event.node.key] = event.node.value
