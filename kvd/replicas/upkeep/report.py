"""The report of a replica: what the others see of it, through the engine.

It is kept there as JSON:

    {"name": "h1", "peer": "http://h1:2380", "urls": ["http://h1:2379"], "state": "following",
     "applied": 26503, "durable": 26440, "version": "1.4.0", "reads": 2, "at": 1700000000000000000}

A reader ignores members that it does not know.
"""

import json
from typing import Any, NamedTuple

JOINING = "joining"
"""The state of a replica that has no store yet with which the log goes on."""


class Report(NamedTuple):
    """The own description of a replica.

    `peer` is its URL for other replicas, `urls` are those for clients. `applied` and `durable` are
    numbers of frames: the last one that reads show, and the last one that is on its disk. `durable`
    is None while the replica has no store that the log continues; one that is joining by a snapshot
    says behind which frame it needs the log. `reads` is the highest payload version that it
    understands, `at_ns` the time of the report by its own clock, in ns since 1970, for people.
    """

    name: str
    peer: str
    urls: tuple[str, ...]
    state: str
    applied: int
    durable: int | None
    version: str
    reads: int
    at_ns: int


def encode(report: Report) -> bytes:
    """Return the JSON of a report."""
    document = {**report._asdict(), "at": report.at_ns}
    del document["at_ns"]
    return json.dumps(document).encode()


def decode(data: bytes) -> Report:
    """Return the report of its JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        document: Any = json.loads(data)
        report = Report(
            name=document["name"],
            peer=document["peer"],
            urls=tuple(document["urls"]),
            state=document["state"],
            applied=document["applied"],
            durable=document["durable"],
            version=document["version"],
            reads=document["reads"],
            at_ns=document["at"],
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no report: {error!r}") from None
    texts = (report.name, report.peer, report.state, report.version, *report.urls)
    numbers = (report.applied, report.durable or 0, report.reads, report.at_ns)
    if {type(text) for text in texts} != {str} or {type(number) for number in numbers} != {int}:
        raise ValueError("no report: its members have other types")
    return report
