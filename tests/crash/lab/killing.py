"""The process dies: at random, at each failpoint, and during watches."""

import contextlib
import http.client
import json
import shutil
import threading
import time
from pathlib import Path

from kvd.storage import failpoints
from kvd.testing.crash import DISCONNECTED, Clients, Connection, Fact, Ledger, Request
from kvd.testing.crash.facts import fact_of
from tests.crash.lab.disks import recover
from tests.crash.lab.experiment import ALL, Experiment, Trial, Violation
from tests.crash.lab.process import Kvd, NotListening

FLAGS = (
    *("--wal-segment-bytes", "262144", "--snapshot-count", "400"),
    *("--event-history-limit", "1000000"),
)
SMALL_FLAGS = (
    *("--wal-segment-bytes", "65536", "--snapshot-count", "40"),
    *("--event-history-limit", "1000000"),
)


def start(kvd: Kvd, *flags: str, fresh: bool = False) -> None:
    """Start a server that must recover; its refusal is a violation."""
    try:
        kvd.start(*flags, fresh=fresh)
    except NotListening as error:
        raise Violation(f"the server does not start again: {str(error)[-400:]}") from None


def kill_random(trial: Trial) -> None:
    """SIGKILL under 16 writers, at a random time or behind a response; also in recovery."""
    ledger = Ledger()
    clients = Clients(16, trial.seed)
    with Kvd(trial.directory / "data", *FLAGS, mutant=trial.mutant) as kvd:
        start(kvd)
        for kills in range(1, trial.rounds + 1):
            clients.start(kvd.url)
            if kills % 2:
                # What has just been acknowledged is what a mistake costs first.
                with contextlib.suppress(TimeoutError):  # it has ended on its own
                    clients.wait(acked=trial.dice.randrange(1, 200))
            else:
                time.sleep(trial.dice.uniform(0.005, 0.3))
            kvd.kill()
            ops = clients.join()
            while trial.dice.random() < 0.1:
                kvd.launch()
                time.sleep(trial.dice.uniform(0.05, 0.4))
                kvd.kill()
                trial.count("kills while recovering")
            rebuilds = kills % 20 == 0
            start(kvd, *(["--rebuild-index"] if rebuilds else []))
            kind = "index rebuilt" if rebuilds else "index reused"
            trial.sample(f"ready after SIGKILL, {kind}", kvd.ready_s)
            trial.sample("acknowledged writes in a life", sum(op.acked for op in ops), "")
            ledger.check(ops, kvd.url)
            trial.figures["kills"] = kills
            trial.figures["acknowledged writes"] = ledger.acked
            trial.figures["in doubt"] = ledger.in_doubt
            trial.figures["of these happened"] = ledger.happened_unanswered
            trial.figures["lost"] = 0
            trial.progress(kills)


def script(url: str, book: list[Request]) -> None:
    """A fixed run of one client through cuts and snapshots, which is not waited for."""
    connection = Connection(url, book)
    with contextlib.suppress(*DISCONNECTED):
        for number in range(120):
            key, value = f"/k/{number % 7}", f"0.{number}." + "x" * (number % 5 * 900)
            now = time.monotonic()
            match number % 6:
                case 0:
                    op = Request("POST", "/q/0", {"value": value}, now)
                case 1:
                    op = Request("PUT", key, {"value": value, "ttl": "5000"}, now)
                case 2 if number % 12 == 2:
                    op = Request("DELETE", "/q/0", {"recursive": "true"}, now)
                case 3:
                    op = Request("DELETE", f"/k/{(number - 1) % 7}", {}, now)
                case _:
                    op = Request("PUT", key, {"value": value}, now)
            connection.request(op)
    connection.close()


_SNAPSHOTS_S = 10.0
_AT_A_TORN_TAIL = "walBeforeWrite=tear:100@20"


def faults_at_places(trial: Trial) -> list[str]:
    """Return faults to be armed: each place at its first, second and a later time."""
    faults = [f"{name}=crash@{nth}" for nth in (1, 2, 20) for name in failpoints.NAMES]
    torn = [name for name, text in failpoints.NAMES.items() if "can tear" in text]
    faults += [f"{name}=tear:{size}@2" for name in torn for size in (1, 39, 44, 100, 511)]
    if len(faults) <= trial.rounds:
        return faults
    # A write that was acknowledged long before is what any mistake costs first.
    return ["walBeforeWrite=crash@20", *trial.dice.sample(faults, trial.rounds - 1)]


def kill_failpoint(trial: Trial) -> None:
    """End the server at each of its named places; then at another one while it recovers."""
    faults = faults_at_places(trial)
    every_place = len(faults) > len(failpoints.NAMES)
    trial.rounds = len(faults)
    reached = set()
    at_start = [name for name in failpoints.NAMES if name.startswith(("start", "tail"))]
    for done, fault in enumerate(faults, 1):
        data = trial.directory / "data"
        shutil.rmtree(data, ignore_errors=True)
        ops: list[Request] = []
        places = [fault, f"{trial.dice.choice(at_start)}=crash"]
        if fault.startswith("tail"):
            places.insert(0, _AT_A_TORN_TAIL)  # there must be one
        with Kvd(data, *SMALL_FLAGS, "--enable-failpoints", mutant=trial.mutant) as kvd:
            for place in places:
                try:
                    kvd.start("--failpoint", place)
                except NotListening:
                    pass
                else:
                    script(kvd.url, ops)
                    _give_time_for_snapshots(kvd, place, ops)
                if kvd.wait_or_terminate() == -9:
                    reached.add(place.partition("=")[0])
                _check_copy(data, ops, ", then ".join(places))
        trial.figures["faults"] = done
        trial.figures["places reached"] = f"{len(reached)} of {len(failpoints.NAMES)}"
        trial.figures["lost"] = 0
        trial.progress(done)
    never = sorted(failpoints.NAMES.keys() - reached)
    trial.check(not every_place or not never, f"places that were never reached: {never}")


def _give_time_for_snapshots(kvd: Kvd, place: str, ops: list[Request]) -> None:
    """Go on until the place is reached, where it may be: snapshots are made beside the writes."""
    if not place.startswith(("snapshot", "purge")) or place.endswith("@20"):
        return
    end = time.monotonic() + _SNAPSHOTS_S
    while kvd.running() and time.monotonic() < end:
        time.sleep(0.2)
        script(kvd.url, ops)


def _check_copy(data: Path, ops: list[Request], where: str) -> None:
    """Check a copy, so that the next life finds what this one has left."""
    copy = data.with_name("copy")
    shutil.copytree(data, copy)
    try:
        check_directory(copy, ops)
    except Violation as error:
        raise Violation(f"{where}: {error}") from None
    shutil.rmtree(copy)


def check_directory(data: Path, ops: list[Request]) -> None:
    """Recover a directory twice in this process and hold it against what a client was told."""
    if not data.exists():
        if ops:
            raise Violation("the data directory is gone")
        return
    found = recover(data)
    if found.refusal:
        raise Violation(f"recovery refuses: {found.refusal}")
    Ledger().settle(ops, list(found.facts), found.files)
    rebuilt = recover(data, rebuild_index=True)
    if rebuilt.refusal:
        raise Violation(f"the index cannot be rebuilt: {rebuilt.refusal}")
    if rebuilt[:3] != found[:3]:
        raise Violation("the index and what is rebuilt from the log are not the same")


class Watcher:
    """One stream watch of everything, resumed where it ended for as long as the trial lasts."""

    def __init__(self) -> None:
        self.seen: list[Fact] = []
        self._thread: threading.Thread | None = None

    def start(self, port: int) -> None:
        """Go on behind the last event seen."""
        self._thread = threading.Thread(target=self._run, args=[port], daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the stream."""
        assert self._thread is not None
        self._thread.join(60)

    def _run(self, port: int) -> None:
        first = self.seen[-1].index + 1 if self.seen else 2
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        target = f"/v2/keys/?wait=true&recursive=true&stream=true&waitIndex={first}"
        with contextlib.suppress(*DISCONNECTED):
            connection.request("GET", target)
            response = connection.getresponse()
            while line := response.readline():
                self.seen.append(fact_of(json.loads(line)))
        connection.close()


def history(trial: Trial) -> None:
    """16 clients read and write 5 keys, and are watched; the server is killed amid of it."""
    for done in range(1, trial.rounds + 1):
        ledger, watcher = Ledger(), Watcher()
        clients = Clients(16, f"{trial.seed} {done}", keys=5, reads=True)
        data = trial.directory / "data"
        shutil.rmtree(data, ignore_errors=True)
        asked = 0
        with Kvd(data, *FLAGS, mutant=trial.mutant) as kvd:
            start(kvd)
            for life in range(3):
                watcher.start(kvd.port)
                clients.start(kvd.url, 500 // 3 + 1)
                if life < 2:
                    time.sleep(trial.dice.uniform(0.3, 0.9))
                    kvd.kill()
                ops = clients.join()
                asked += len(ops)
                if life < 2:
                    watcher.join()
                    start(kvd)
                ledger.check(ops, kvd.url)
            kvd.terminate()
            watcher.join()
        _check_watch(trial, ledger, watcher)
        trial.count("requests", asked)
        trial.count("events watched", len(watcher.seen))
        trial.figures["histories"] = done
        trial.figures["violations"] = 0
        trial.progress(done)


def _check_watch(trial: Trial, ledger: Ledger, watcher: Watcher) -> None:
    """Check that a resumed watch is ordered, unique, gap-free and complete."""
    for place, fact in enumerate(ledger.facts):
        seen = watcher.seen[place] if place < len(watcher.seen) else None
        trial.check(
            seen == fact, f"a watcher was told {str(seen)[:120]}, expected {str(fact)[:120]}"
        )
    trial.check(len(watcher.seen) == len(ledger.facts), "a watcher was told more than happened")


EXPERIMENTS = (
    Experiment(
        "kill-random",
        "after SIGKILL at any time no acknowledged write is lost, indexes only grow, and every "
        "answer stands in one order",
        ("late-write",),
        *(1000, 6, "kills", kill_random),
    ),
    Experiment(
        "kill-failpoint",
        "SIGKILL at any of the server's named places, or amid the write there, leaves a directory "
        "that opens with all that was acknowledged",
        ("late-write", "index-ahead"),
        *(ALL, 3, "faults", kill_failpoint),
    ),
    Experiment(
        "history",
        "reads, writes and refusals of 16 clients are linearizable across kills; a resumed watch "
        "is told every event once, in order",
        ("late-write", "drop-event"),
        *(100, 1, "histories", history),
    ),
)
