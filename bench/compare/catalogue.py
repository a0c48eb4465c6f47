"""All rows of the comparison with etcd, with what is demanded of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.compare import measures, snapshot_rows
from bench.compare.fleet import Scale
from bench.compare.rows import Demand, Row, at_least, at_most, below

if TYPE_CHECKING:
    from collections.abc import Sequence

CONNECTIONS = (1, 16, 64, 256)
"""What the plot of rates shows."""
TREE_KEYS = 9_900
"""In 100 directories: 10,000 nodes."""
LARGE_BYTES = 10 * 1024
READERS = (16, 64, 256)
"""Numbers of readers next to eight writers."""


def rows(scale: Scale) -> list[Row]:
    """Return all rows, group by group."""
    return [*plain_rows(), *watch_rows(scale), *million_rows(scale), *size_rows(scale)]


def choose(available: Sequence[Row], wanted: Sequence[str]) -> list[Row]:
    """Return the rows that are named by their name, its first word, or their group; all for none.

    Raises:
        ValueError: a name fits none.
    """
    words = {row: {row.name, row.name.partition("-")[0], row.group} for row in available}
    unknown = set(wanted).difference(*words.values())
    if unknown:
        raise ValueError(
            f"no such row: {', '.join(sorted(unknown))}; there are "
            f"{', '.join(row.name for row in available)}"
        )
    return [row for row in available if not wanted or words[row] & set(wanted)]


def plain_rows() -> list[Row]:
    """Return the rows on servers that hold little."""
    gets: dict[int, tuple[Demand, ...]] = {1: (at_least(1.0),), 64: (at_least(2.0),)}
    puts = {1: 1.2, 16: 1.6, 64: 1.75, 256: 1.8}
    return [
        *(
            plain(f"get-{n}", f"GET, connections: {n}", *gets.get(n, ()), workload="get", at=n)
            for n in CONNECTIONS
        ),
        *(
            plain(f"put-{n}", f"PUT, connections: {n}", at_least(puts[n]), workload="put", at=n)
            for n in CONNECTIONS
        ),
        *large_rows(),
        plain("cas-64", "compare-and-swap, connections: 64", at_least(1.5), workload="cas"),
        plain("post-64", "in-order POST, connections: 64", at_least(1.5), workload="post"),
        plain(
            "delete-64", "DELETE and PUT by turns, connections: 64", at_least(1.5),
            workload="delete",
        ),
        plain("refresh-64", "TTL refresh, connections: 64", at_least(1.5), workload="refresh"),
        *listing_rows(),
        *mixed_rows(),
    ]  # fmt: skip


def large_rows() -> list[Row]:
    """Return the rows on large values."""
    large = measures.load_row
    return [
        Row(
            "large-put", "PUT of 10 KB values, connections: 64", "plain",
            large("put", 64, value_bytes=LARGE_BYTES), (at_least(1.4),),
        ),
        Row(
            "large-get", "GET of 10 KB values, connections: 64", "plain",
            large("get", 64, value_bytes=LARGE_BYTES), (at_least(2.0),),
        ),
    ]  # fmt: skip


def listing_rows() -> list[Row]:
    """Return the rows on listings, of a directory and of a tree."""
    return [
        *(
            plain(
                f"list-{n}", f"listing 1,000 children, unchanged, connections: {n}", at_least(1.2),
                workload="list", at=n,
            )
            for n in (1, 16)
        ),
        plain(
            "relist-1", "listing 1,000 children and a PUT to one by turns, connections: 1",
            at_least(1.2), workload="relist", at=1,
        ),
        plain(
            "tree-1", "recursive listing of 10,000 nodes, unchanged, connections: 1",
            at_least(1.2), workload="tree", at=1, keys=TREE_KEYS,
        ),
        plain(
            "retree-1", "recursive listing of 10,000 nodes and a PUT to one by turns, "
            "connections: 1", at_least(1.2), workload="retree", at=1, keys=TREE_KEYS,
        ),
    ]  # fmt: skip


def mixed_rows() -> list[Row]:
    """Return the rows on reads and writes at the same time."""
    return [
        *(
            Row(
                f"beside-{n}", f"PUT, connections: 8, beside {n} that read", "plain",
                measures.beside_readers(n), (at_least(1.0), at_least(1.0, "reads_rate")),
            )
            for n in READERS
        ),
        # The p99 of reads alone is what the bundled generator knows.
        Row(
            "mixed-64", "90 % GET, 10 % PUT, connections: 64", "plain",
            measures.load_row("mixed", 64, generator="python"),
            (at_least(1.6), at_most(1.0, "get_p99_ms")),
        ),
    ]  # fmt: skip


def plain(
    name: str, title: str, *demands: Demand, workload: str, at: int = 64, keys: int = 1000
) -> Row:
    """Return a row of one workload by so many connections."""
    return Row(name, title, "plain", measures.load_row(workload, at, keys=keys), demands)


def watch_rows(scale: Scale) -> list[Row]:
    """Return the rows about very many watchers."""
    limits = {"poll": 0.9, "stream": 1.0}
    others = below(20, "get_max_ms"), at_most(0.15, "watcher_bytes")
    reduced = scale.watchers < Scale().watchers
    return [
        Row(
            f"watch-{name}", f"{scale.watchers:,} watchers on one key, {title}", "alone",
            measures.watching(stream=name == "stream"),
            (at_most(limits[name], "told_ms"), *others), reduced=reduced,
        )
        for name, title in (("poll", "long poll"), ("stream", "stream"))
    ]  # fmt: skip


def million_rows(scale: Scale) -> list[Row]:
    """Return the rows on servers that hold a million keys."""
    keys, reduced = f"{scale.million:,} keys", scale.million < Scale().million

    def row(name: str, title: str, measure: measures.Measure, *demands: Demand) -> Row:
        once = measure is measures.memory
        return Row(name, title, "million", measure, demands, once=once, reduced=reduced)

    return [
        row(
            "memory", f"memory with {keys} of {scale.value_bytes} bytes", measures.memory,
            at_most(0.02, "anonymous_mb"),
        ),
        row(
            "million-get", f"GET at random of {keys}, connections: 64", measures.anywhere("get"),
            at_least(1.5),
        ),
        row(
            "million-put", f"PUT at random of {keys}, connections: 64", measures.anywhere("put"),
            at_least(1.6),
        ),
        row(
            "restart", f"start after kill -9 with {keys}", measures.restart,
            at_most(0.1, "ready_s"), at_most(1.0, "rebuilt_s"),
        ),
        row(
            "snapshot", f"64 writers while a snapshot of {keys} is taken", snapshot_rows.snapshots,
            at_most(0.3, "get_p99_ms"), below(30, "put_excess_ms"),
        ),
    ]  # fmt: skip


def size_rows(scale: Scale) -> list[Row]:
    """Return the rows that compare small stores with large ones; kvd alone."""
    small, large = min(scale.sizes), max(scale.sizes)
    middle, middle_full = (sorted(sizes)[:2][-1] for sizes in (scale.sizes, Scale().sizes))
    return [
        *(
            Row(
                f"size-{workload}",
                f"{workload.upper()} at random of {large:,} keys against {small:,}, "
                "connections: 64",
                "sizes", measures.costs(workload), (below(1.5, "cost"),),
                shown=below(1.5, "cost"), reduced=large < max(Scale().sizes),
            )
            for workload in ("get", "put")
        ),
        Row(
            "tail-put", f"PUT at random of {middle:,} keys against {small:,}, connections: 64",
            "sizes", measures.tails("put"), (below(2.0, "tail"),), shown=below(2.0, "tail"),
            reduced=middle < middle_full,
        ),
    ]  # fmt: skip
