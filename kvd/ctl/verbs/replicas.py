"""`replicas`: the replicas of a store, and the hand-over of the lead."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from kvd.client.errors import ApiError
from kvd.client.exchanges import json_of
from kvd.ctl.command import Call, Verb, pass_call
from kvd.ctl.etcdctl.output import json_bytes, write
from kvd.ctl.failures import failure
from kvd.lines import printable

_PATH = "/v2/replicas"
_COLUMNS = ("NAME", "ID", "STATE", "APPLIED", "BEHIND", "DURABLE", "URL", "VERSION", "SEEN")
_NUMBERS = ("APPLIED", "BEHIND", "DURABLE")
_CHANGE_S = 15.0
"""How long another replica may take to lead."""
_LOOK_S = 0.1


@click.command(cls=Verb, help="Show the replicas of a store, or hand the lead over.")
@click.option("--hand-over", is_flag=True, help="let another replica lead")
@pass_call
def command(call: Call, *, hand_over: bool) -> None:
    """Show the replicas of a store, or hand the lead over."""
    found = _read(call)
    if hand_over:
        found = _hand_over(call, found)
    if call.is_json:
        write(json_bytes(found).decode() + "\n")
    else:
        write("".join(f"{printable(line)}\n" for line in _lines(found)))


def _read(call: Call) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json_of(call.session.call("GET", _PATH))
    except (ApiError, ValueError) as error:
        raise failure("this server has no replicas; see `kvdctl help replicas`") from error
    return found


def _hand_over(call: Call, found: dict[str, Any]) -> dict[str, Any]:
    """Have the leader hand over; return what is there once another replica leads."""
    before = found["leader"]
    if not before:
        raise failure("there is no leader that could hand over")
    if found["id"] == before:
        call.session.call("POST", f"{_PATH}/hand-over")
    else:
        _ask(call, _urls(found, before))
    until = time.monotonic() + _CHANGE_S
    while time.monotonic() < until:
        found = _read(call)
        if found["leader"] not in ("", before):
            return found
        time.sleep(_LOOK_S)
    raise failure(f"no other replica leads after {_CHANGE_S:.0f} s; see `kvdctl replicas`")


def _ask(call: Call, urls: Sequence[str]) -> None:
    """Have the leader at one of these URLs hand over."""
    from kvd.ctl.session import Session  # noqa: PLC0415 -- for another server alone
    from kvd.ctl.settings import Settings  # noqa: PLC0415

    other = Session(Settings({**call.given, "endpoints": ",".join(urls)}))
    try:
        other.call("POST", f"{_PATH}/hand-over")
    finally:
        other.close()


def _urls(found: dict[str, Any], member_id: str) -> Sequence[str]:
    urls = [
        url for each in found["replicas"] if each["id"] == member_id for url in each["clientURLs"]
    ]
    if not urls:
        raise failure(f"the leader {member_id} has given no URL for clients")
    return urls


def _lines(found: dict[str, Any]) -> list[str]:
    end = max((each["applied"] for each in found["replicas"]), default=0)
    replicas = sorted(found["replicas"], key=lambda each: (each["name"], each["id"]))
    rows = [_COLUMNS, *(_row(each, end, found["leader"]) for each in replicas)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if name in _NUMBERS else text.ljust(width)
            for name, text, width in zip(_COLUMNS, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return [*lines, "", _engine(found["engine"])]


def _row(replica: dict[str, Any], end: int, leader: str) -> tuple[str, ...]:
    seen_s, durable = replica["seenSeconds"], replica["durable"]
    # What it reports may be older than what this server knows of the lead.
    state = "following" if leader and replica["state"] == "leading" else replica["state"]
    if replica["id"] == leader:
        state = "leading"
    return (
        replica["name"],
        replica["id"],
        state,
        str(replica["applied"]),
        str(end - replica["applied"]),
        "-" if durable is None else str(durable),
        ",".join(replica["clientURLs"]),
        replica["version"],
        "not lately" if seen_s is None else f"{seen_s:.1f} s",
    )


def _engine(engine: dict[str, Any]) -> str:
    room = f", {_mib(engine['bytes'])}" if engine["bytes"] else ""
    if engine["quotaBytes"]:
        room += f" of {_mib(engine['quotaBytes'])}"
    return f"engine {engine['url']}{room}, last answer {engine['silentSeconds']:.1f} s ago"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
