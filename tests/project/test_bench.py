"""The tools that measure: what they claim, they must be able to find wrong."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.compare import bare, catalogue, conditions, plot, report
from bench.compare.conditions import Conditions
from bench.compare.fleet import QUICK, Scale
from bench.compare.preloaded import Standing
from bench.compare.rows import OURS, THEIRS, Measured, Result, Row, at_least, at_most, below
from bench.compare.snapshot_rows import during
from bench.load import servers, wrk
from bench.load.closed_loop import PERCENTS, Figures, Samples, percentile
from bench.load.keyspace import Keyspace
from bench.load.probe import Sample
from bench.load.wire import Client
from bench.load.workloads import WORKLOADS, Expected, Lane, WrongAnswer
from bench.replicas.__main__ import ALONE
from bench.replicas.__main__ import table as replicas_table
from tests.support.server import ROOT

KEYS = 2000


QUIET = Conditions(seconds=1.0, others=0.01, stolen=0.0)
BUSY = Conditions(seconds=1.0, others=0.5, stolen=0.0)
STOLEN = Conditions(seconds=1.0, others=0.0, stolen=0.2)


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Standing]:
    """A kvd, and keys loaded into it."""
    with servers.kvd(tmp_path) as server:
        made = Standing(server, keys=KEYS, value_bytes=20)
        made.load()
        yield made


def test_a_write_that_got_lost_is_found(standing: Standing) -> None:
    standing.measure("put", connections=4, seconds=0.2, seed=1, use_wrk=False)
    standing.verify_some(KEYS)
    written = max(range(KEYS), key=standing.numbers.__getitem__)
    assert standing.numbers[written] > 0
    with Client(standing.server.address) as client:
        path = standing.space.path(written)
        client.request("PUT", path, b"value=" + standing.space.value(0))
    with pytest.raises(WrongAnswer, match=path):
        standing.verify_some(KEYS)


def test_a_load_ends_at_a_value_that_was_never_written(standing: Standing) -> None:
    standing.numbers[7] = 99
    with pytest.raises(WrongAnswer, match="expected"):
        standing.measure("get", connections=1, seconds=30, seed=1, use_wrk=False)


def test_connections_share_out_all_keys() -> None:
    space = Keyspace.make("any", keys=1003, value_bytes=20, seed=5)
    lanes = [space.lane_keys(lane, 7) for lane in range(7)]
    assert sorted(key for keys in lanes for key in keys) == list(range(1003))


def test_only_what_was_waited_for_in_a_span_counts() -> None:
    ms = 1_000_000
    samples = Samples()
    for latency_ms, answered_ms in [(5, 10), (8, 22), (1, 30)]:
        samples.note(b"PUT", latency_ms * ms, answered_ms * ms)
    reads = [Sample(0, 3 * ms), Sample(18 * ms, 21 * ms), Sample(26 * ms, 40 * ms)]
    delays = during([(20 * ms, 25 * ms)], reads, samples)
    assert (delays.get_p99_ms, delays.put_p99_ms, delays.seconds) == (3.0, 8.0, 0.005)


def test_percentiles_are_those_of_the_samples() -> None:
    assert [percentile(range(1000), p) for p in (0, 50, 99, 99.9, 100)] == [0, 500, 990, 999, 999]
    assert percentile([], 99) == 0


def test_a_demand_is_judged_by_the_median_of_the_rounds() -> None:
    faster, smaller, quick = at_least(1.5), at_most(0.5, "anonymous_mb"), below(20, "get_max_ms")
    result = Result(_row(faster, smaller, quick))
    for rate, mb, wait in [(150, 6, 10), (90, 4, 19), (200, 1, 99)]:
        ours = {"rate": rate, "anonymous_mb": mb, "get_max_ms": wait}
        theirs = {"rate": 100, "anonymous_mb": 10, "get_max_ms": 1}
        result.rounds.append({OURS: Measured(ours), THEIRS: Measured(theirs)})
    assert [result.reached(demand) for demand in result.row.demands] == [True, True, True]
    assert not result.reached(at_least(1.6))
    assert not result.reached(below(18, "get_max_ms"))


def test_a_row_without_etcd_has_no_ratio_and_reaches_nothing() -> None:
    result = Result(_row(at_least(1.0)), [{OURS: Measured({"rate": 5.0})}])
    assert result.reached(result.row.demands[0]) is None
    assert "| GET | requests/s | 5 | - | - | ≥ 1 times | - |" in report.markdown([result])


def test_a_row_that_failed_reaches_nothing_and_says_why() -> None:
    measured = {OURS: Measured({"rate": 5.0}), THEIRS: Measured({"rate": 1.0})}
    result = Result(_row(at_least(1.0)), [measured], failed="a value was lost")
    assert result.reached(result.row.demands[0]) is None
    assert "GET: **failed**: a value was lost" in report.markdown([result])


def test_a_round_on_a_busy_machine_does_not_count() -> None:
    result = Result(_row(at_least(1.5)))
    for ours, is_busy in ((300.0, True), (200.0, False), (100.0, True), (160.0, False)):
        result.rounds.append({OURS: Measured({"rate": ours}), THEIRS: Measured({"rate": 100.0})})
        result.conditions.append(BUSY if is_busy else QUIET)
    assert result.values(at_least(1.5)) == [2.0, 1.6]
    assert result.median(OURS, "rate") == 180
    assert result.reached(at_least(1.5)) is True
    assert "2 of 4 rounds do not count" in report.others([result])


@pytest.mark.parametrize(
    ("theirs", "others", "doubt"),
    [
        ([100.0, 100.0, 100.0], [QUIET, BUSY, BUSY], "the machine was busy in 2 of 3 rounds"),
        ([100.0, 100.0, 100.0], [STOLEN] * 3, "its host 20%"),
        ([100.0, 49.0, 100.0], [QUIET] * 3, "etcd did 49/s in one round and 100/s in another"),
        ([100.0, 51.0, 100.0], [QUIET] * 3, ""),
        ([100.0, 9.0, 100.0], [QUIET, BUSY, QUIET], ""),
    ],
    ids=["busy", "stolen", "unsteady", "steady", "unsteady-where-it-does-not-count"],
)
def test_a_row_is_not_called_measured_on_a_busy_machine_or_beside_an_unsteady_peer(
    theirs: list[float], others: list[Conditions], doubt: str
) -> None:
    result = Result(_row(at_least(1.5)), conditions=others)
    for rate in theirs:
        result.rounds.append({OURS: Measured({"rate": 300.0}), THEIRS: Measured({"rate": rate})})
    assert doubt in result.doubt
    assert bool(doubt) == bool(result.doubt)
    assert (result.reached(at_least(1.5)) is None) == bool(doubt)
    assert ("| not measured |" in report.markdown([result])) == bool(doubt)
    assert (f"**not measured**: {result.doubt}" in report.markdown([result])) == bool(doubt)


def test_what_others_compute_is_distinguished_from_what_a_tree_of_processes_does() -> None:
    def processes(*, server: int, waited_for: int, other: int) -> dict[str, str]:
        # pid (name) state parent ..., user and system time, those of children waited for
        return {
            str(
                pid
            ): f"{pid} ({name}) S {parent} 1 1 0 -1 4194560 9 9 9 9 {user} 5 {children} 7 20 0"
            for pid, name, parent, user, children in (
                (1, "init", 0, 0, 5_000),
                (50, "a) S 1 (b", 1, other, 0),
                (70, "bench", 1, 100, waited_for),
                (71, "server", 70, server, 0),
                (72, "reader", 71, 10, 0),
            )
        }

    def whole(user: int, nice: int, stolen: int) -> str:
        return f"cpu  {user} {nice} 700 9000 10 0 3 {stolen} 0 0\ncpu0 1 2 3 4 5 6 7 8 9 9\n"

    before = conditions.parse(
        whole(1000, 100, 10), processes(server=40, waited_for=0, other=300),
        own=70, at=5.0, ticks_per_s=100,
    )  # fmt: skip
    # In 2 s of two processors: 1.5 s of ours, 0.4 s of others, of which half was nice.
    after = conditions.parse(
        whole(1170, 120, 30), processes(server=140, waited_for=50, other=340),
        own=70, at=7.0, ticks_per_s=100,
    )  # fmt: skip
    found = Conditions.between(before, after, processors=2)
    assert found.seconds == 2.0
    assert found.others == pytest.approx(0.1)
    assert found.stolen == pytest.approx(0.05)
    assert Conditions.between(after, after, processors=2).is_busy is False


def test_a_look_at_this_machine_reports_this_process() -> None:
    looked = conditions.look()
    assert looked.own <= looked.user
    assert conditions.python_build()
    assert conditions.event_loop().startswith(("asyncio", "uvloop "))


@pytest.mark.parametrize(
    ("arguments", "vendor", "build"),
    [
        ("", "", "plain, not optimised"),
        ("'--prefix=/opt' '--enable-shared'", "", "plain, not optimised"),
        ("'--enable-optimizations'", "", "optimised (PGO)"),
        ("'--enable-optimizations' '--with-lto' 'CFLAGS=-g'", "", "optimised (PGO, LTO)"),
        ("'--enable-optimizations'", "Debian", "optimised (PGO)"),
        ("'--prefix=/usr'", "Debian", "as Debian builds it"),
    ],
)
def test_how_python_was_built_is_read_from_its_configuration(
    arguments: str, vendor: str, build: str
) -> None:
    assert conditions.build_of(arguments, vendor) == build


def test_rows_are_chosen_by_name_beginning_and_group() -> None:
    rows = catalogue.rows(Scale())
    assert len({row.name for row in rows}) == len(rows)
    chosen = catalogue.choose(rows, ["put-64", "watch", "sizes"])
    names = ["put-64", "watch-poll", "watch-stream", "size-get", "size-put", "tail-put"]
    assert [row.name for row in chosen] == names
    assert catalogue.choose(rows, []) == rows
    with pytest.raises(ValueError, match="no such row: nothing"):
        catalogue.choose(rows, ["nothing"])


def test_a_quick_row_does_not_claim_the_full_size() -> None:
    reduced = {row.name for row in catalogue.rows(QUICK) if row.reduced}
    large = {row.name for row in catalogue.rows(QUICK) if row.group != "plain"}
    assert reduced == large
    assert not any(row.reduced for row in catalogue.rows(Scale()))


def test_plots_are_drawn_from_what_was_measured() -> None:
    latencies = tuple(float(n) for n in range(1, len(PERCENTS) + 1))
    round_ = {
        name: Measured({"rate": rate}, latencies) for name, rate in ((OURS, 9e3), (THEIRS, 4e3))
    }
    results = [Result(_row(name=f"get-{n}"), [round_]) for n in (1, 64)]
    sizes = {"us_at_10000": 20.0, "us_at_1000000": 22.0, "cost": 1.1}
    results.append(Result(_row(name="size-put"), [{OURS: Measured(sizes)}]))
    drawn = ElementTree.fromstring(plot.svg(results))
    curves = [e for e in drawn.iter() if e.tag.endswith("polyline")]
    assert len(curves) == 2 + 2 + 1
    assert not list(ElementTree.fromstring(plot.svg([])))[1:]


def test_the_layers_can_be_measured() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "bench/test_layers.py", "--benchmark-disable", "-q"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout


def _row(*demands: object, name: str = "get-1") -> Row:
    return Row(name, "GET", "plain", _unmeasured, demands)  # type: ignore[arg-type]


def _unmeasured(*_: object) -> dict[str, Measured]:
    raise AssertionError


def test_the_bare_server_logs_a_body_before_it_answers(tmp_path: Path) -> None:
    with bare.bare(tmp_path) as server, Client(server.address) as client:
        assert client.request("PUT", "/v2/keys/a", b"value=1").body == bare.BODY
        assert (server.data / "log").read_bytes()[:8] == b"value=1\0"


def test_replicas_are_compared_within_a_round() -> None:
    def figures(*rates: int) -> list[Figures]:
        return [Figures("wrk", rate, 0, 1.0, 900.0, 5000.0, 1.0, 42.0) for rate in rates]

    by_name = {"kvd": figures(50, 100, 90), "etcd": figures(100, 50, 100), ALONE: figures(1, 1, 1)}
    (*_, line) = replicas_table({"PUT leader": by_name}, ["kvd", "etcd"]).splitlines()
    assert "| 90 · 0.90 / 5.0 · 42 | 100 · 0.90 / 5.0 · 42 |" in line
    assert line.endswith("| 0.90 | 90.00 |")


def test_a_quorum_read_asks_for_one() -> None:
    space = Keyspace.make("quorum", keys=10, value_bytes=20, seed=1)
    expected: Expected = dict.fromkeys(range(10), space.value(0))
    request = next(WORKLOADS["quorum"].script(Lane(space, 0, 1, expected)))
    assert b"?quorum=true HTTP/1.1\r\n" in request
    script = wrk.lua_script("quorum", space, base=0, rendered_max=100)
    assert 'quorums = heads("GET", nil, "?quorum=true")' in script
    assert "return quorums[issued % keys]" in script
