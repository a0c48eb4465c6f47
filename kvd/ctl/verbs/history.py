"""`history` and `txn`: the events of a key, and several changes together."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from kvd.client.exchanges import json_of
from kvd.client.operations import JSON
from kvd.ctl.command import Call, Verb, keys, pass_call
from kvd.ctl.etcdctl.output import Json, write
from kvd.ctl.failures import failure
from kvd.lines import printable


def line_of(answer: Json, time: str) -> str:
    """Return an event as one line."""
    node = answer["node"]
    return described(
        node["modifiedIndex"],
        time,
        answer["action"],
        f"{node['key']}/" if node.get("dir") else node["key"],
        node.get("value"),
    )


def described(index: int, time: str, action: str, key: str, value: str | None) -> str:
    """Return what has happened to a key as one line; None for no value."""
    shown = "" if value is None else f" = {value}"
    return printable(f"{index} {time} {action} {key}{shown}")


@click.command(cls=Verb, help="Print the events of a key, newest first (kvd only).")
@click.argument("key", shell_complete=keys)
@click.option(
    "--limit", type=click.IntRange(1), default=100, metavar="N", help="at most so many (100)"
)
@pass_call
def history(call: Call, *, key: str, limit: int) -> None:
    """Print the events of a key, newest first."""
    operations = call.session.operations
    call.session.run(operations.require("history"))
    before: int | None = None
    while limit > 0:
        query = {"history": True, "limit": min(limit, 1000), "before": before}
        reply = call.session.call("GET", operations.path(key), query=query)
        events = json_of(reply)["events"]
        for answer in events:
            write(
                json.dumps(answer, ensure_ascii=False) + "\n"
                if call.is_json
                else line_of(answer, answer.get("time", "-")) + "\n"
            )
        limit -= len(events)
        if "x-kvd-next" not in reply.headers or not events:
            return
        before = int(reply.headers["x-kvd-next"])


@click.command(cls=Verb, help="Apply several changes together, or none (kvd only).")
@click.argument("file")
@pass_call
def txn(call: Call, *, file: str) -> None:
    """Apply the changes of a JSON file (`-` is standard input), as `POST /v2/txn` takes them."""
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        json.loads(body)
    except OSError as error:
        raise failure(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        name = "standard input" if file == "-" else file
        raise failure(f"{name}: it is no JSON: {error}") from None
    call.session.run(call.session.operations.require("txn"))
    reply = call.session.call("POST", "/v2/txn", body=body, content_type=JSON)
    if call.is_json:
        write(reply.body.decode("utf-8", "replace").rstrip("\n") + "\n")
        return
    for answer in json_of(reply)["events"]:
        node = answer["node"]
        shown = "" if node.get("value") is None else f" = {node['value']}"
        slash = "/" if node.get("dir") else ""
        write(printable(f"{node['modifiedIndex']} {answer['action']} {node['key']}{slash}{shown}"))
        write("\n")
