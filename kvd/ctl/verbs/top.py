"""`top`: what a server does, once a second, from its metrics."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, Self

import click

from kvd.client.errors import TransportError
from kvd.ctl.command import Call, Verb, pass_call
from kvd.ctl.etcdctl.output import write
from kvd.ctl.failures import failure
from kvd.ctl.goflags import Seconds
from kvd.lines import printable

Metrics = Mapping[tuple[str, str], float]
"""Values by name and labels."""

_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_READS = ("GET", "HEAD")
_INTERVAL_MAX_S = 86400


@click.command(cls=Verb, help="Show what a kvd does, once a second, until q or Ctrl-C.")
@click.option("--count", "-n", type=click.IntRange(1), metavar="N", help="so many times")
@click.option(
    "--interval",
    type=Seconds(0.1, _INTERVAL_MAX_S),
    default=1.0,
    metavar="S",
    help="seconds between (1)",
)
@pass_call
def command(call: Call, *, count: int | None, interval: float) -> None:
    """Show what a kvd does, once a second."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the terminal is to be restored
    before, at = _read(call), time.monotonic()
    is_lost = False
    try:
        with _Screen() as screen:
            while count is None or count > 0:
                if screen.is_left(interval):
                    return
                count = None if count is None else count - 1
                try:
                    now, new_at = _read(call), time.monotonic()
                except TransportError as error:
                    screen.report(str(error), is_news=not is_lost)
                    is_lost = True
                    continue
                if is_lost:
                    screen.report("the server answers again", is_news=True)
                screen.show(_rows(before, now, new_at - at))
                before, at, is_lost = now, new_at, False
    except KeyboardInterrupt:
        return


class _Screen:
    """A terminal that is drawn again each time, or an output with one block behind the other."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._keys = sys.stdin.fileno() if self._is_terminal and sys.stdin.isatty() else None
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        if self._keys is not None:
            import termios  # noqa: PLC0415 -- for terminals alone
            import tty  # noqa: PLC0415

            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        return self

    def __exit__(self, *_: object) -> None:
        if self._keys is not None:
            import termios  # noqa: PLC0415

            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    def is_left(self, seconds: float) -> bool:
        """Wait; return whether the user has pressed q."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if self._keys is None:
                time.sleep(left)
            elif select.select([self._keys], [], [], left)[0]:
                pressed = os.read(self._keys, 64)
                if b"q" in pressed or not pressed:
                    return True
        return False

    def show(self, rows: list[str]) -> None:
        """Show rows, as many as there is room for."""
        if not self._is_terminal:
            write("\n".join(rows) + "\n\n")
            return
        width, height = shutil.get_terminal_size()
        text = "\n".join(row[:width] for row in rows[: max(height - 1, 1)])
        write(f"\x1b[H\x1b[J{text}\n")

    def report(self, line: str, *, is_news: bool) -> None:
        """Tell of the server's loss and its return: once, or as long as it lasts on a terminal."""
        if self._is_terminal:
            self.show([printable(line), "trying again; q ends it"])
        elif is_news:
            sys.stderr.write(printable(f"kvdctl: {line}") + "\n")


def _read(call: Call) -> Metrics:
    text = call.session.call("GET", "/metrics").body.decode("utf-8", "replace")
    found = {(name, labels): float(value) for name, labels, value in _LINE.findall(text)}
    if not any(name == "kvd_build_info" for name, _ in found):
        raise failure("top needs kvd: this server has no metrics of kvd")
    return found


def _rows(before: Metrics, now: Metrics, seconds: float) -> list[str]:
    def total(metrics: Metrics, name: str, methods: tuple[str, ...] = ()) -> float:
        labels = [f'method="{method}"' for method in methods]
        return sum(
            value
            for (found, label), value in metrics.items()
            if found == name and (not labels or label in labels)
        )

    def rate(methods: tuple[str, ...]) -> str:
        name = "etcd_http_received_total"
        grown = total(now, name, methods) - total(before, name, methods)
        return f"{max(grown, 0) / seconds:,.0f}/s"

    def gauge(name: str) -> str:
        return f"{total(now, name):,.0f}"

    syncs = _grown(before, now, "kvd_wal_sync_duration_seconds_bucket")
    records = total(now, "kvd_batch_records_sum") - total(before, "kvd_batch_records_sum")
    batches = total(now, "kvd_batch_records_count") - total(before, "kvd_batch_records_count")
    sizes = sum(total(now, f"kvd_{part}_bytes") for part in ("log", "snapshot", "index"))
    rows = (
        ("reads", rate(_READS)),
        ("writes", rate(("PUT", "POST", "DELETE"))),
        ("sync p50", _quantile(syncs, 0.5)),
        ("sync p99", _quantile(syncs, 0.99)),
        ("batch", f"{records / batches:.1f} records" if batches > 0 else "-"),
        ("watchers", gauge("kvd_watchers")),
        ("connections", gauge("kvd_connections")),
        ("index", gauge("kvd_etcd_index")),
        ("first event", gauge("kvd_history_oldest_index")),
        ("on disk", _size(sizes)),
        ("disk left", _size(total(now, "kvd_disk_free_bytes"))),
    )
    return [f"{name:<12}{value:>16}" for name, value in rows]


def _grown(before: Metrics, now: Metrics, name: str) -> list[tuple[float, float]]:
    """Return upper bounds and how often they were met meanwhile, cumulated as in the metrics."""
    found = []
    for (other, labels), value in now.items():
        if other == name:
            bound = re.search(r'le="([^"]+)"', labels)
            assert bound is not None
            found.append((float(bound[1]), max(value - before.get((other, labels), 0.0), 0.0)))
    return sorted(found)


def _quantile(buckets: list[tuple[float, float]], part: float) -> str:
    """Return the bound below which a part of all values is; the buckets double from one to next."""
    if not buckets or buckets[-1][1] == 0:
        return "-"
    wanted = part * buckets[-1][1]
    bound = next(bound for bound, count in buckets if count >= wanted)
    return f"< {bound * 1000:,.3g} ms" if bound != float("inf") else f"> {buckets[-2][0]:g} s"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
