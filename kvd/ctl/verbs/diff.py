"""`diff` and `apply`: a document against a server, and the server made like the document.

Each write is tied to what was read: a key that others change meanwhile is not overwritten. On kvd
all of them are one transaction where they fit.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import click

from kvd.client.errors import (
    ApiError,
    CompareFailed,
    DirectoryNotEmpty,
    KeyExists,
    KeyNotFound,
    NotADirectory,
    NotAFile,
    TransportError,
)
from kvd.client.exchanges import json_of
from kvd.client.operations import JSON
from kvd.ctl import terminal
from kvd.ctl.command import Call, Verb, keys, pass_call
from kvd.ctl.etcdctl.output import write
from kvd.ctl.failures import CONFLICT, DIFFERENT, failure
from kvd.ctl.goflags import Seconds
from kvd.ctl.terminal import Paint
from kvd.ctl.verbs.changes import Change, as_json, compare, lines, load, seconds

_TRANSACTION_MAX = 128
_TOO_LARGE = 413
_CONFLICTS = (
    CompareFailed,
    DirectoryNotEmpty,
    KeyExists,
    KeyNotFound,
    NotADirectory,
    NotAFile,
)
_PAUSE_S = 0.1


def _show(call: Call, changes: list[Change]) -> None:
    if call.is_json:
        write(json.dumps(as_json(changes), ensure_ascii=False) + "\n")
    else:
        write("".join(f"{line}\n" for line in lines(changes, Paint(call.settings))))


@click.command(cls=Verb, help="Show what differs between a document and the server.")
@click.argument("file")
@click.argument("key", required=False, shell_complete=keys)
@pass_call
def diff(call: Call, *, file: str, key: str | None) -> int:
    """Show what differs between a document and the server."""
    changes, _ = compare(call, load(file, key))
    _show(call, changes)
    return DIFFERENT if changes else 0


@click.command(cls=Verb, help="Make the keys of the server those of a document.")
@click.argument("file")
@click.argument("key", required=False, shell_complete=keys)
@click.option("--dry-run", is_flag=True, help="show what would change, and write nothing")
@click.option("--prune", is_flag=True, help="also remove the keys that the document lacks")
@click.option("--yes", is_flag=True, help="remove them without a question")
@click.option("--wait", type=Seconds(0), default=0.0, metavar="S", help="for a server that starts")
@pass_call
def apply(
    call: Call, *, file: str, key: str | None, dry_run: bool, prune: bool, yes: bool, wait: float
) -> int:
    """Make the keys of the server those of a document."""
    wanted = load(file, key)
    _wait_for(call, wait)
    found, index = compare(call, wanted)
    changes = [change for change in found if prune or change.after is not None]
    _show(call, changes)
    if dry_run:
        return DIFFERENT if changes else 0
    if not changes:
        return 0
    removed = sum(change.after is None for change in changes)
    if removed and not yes:
        _confirm(removed)
    done = _Writes(call, changes, index).run()
    if not call.is_json:
        first, last = (f"{number}" for number in (done[0], done[-1]))
        place = first if first == last else f"{first}..{last}"
        write(f"applied {len(done)} change{'s' * (len(done) != 1)} at {place}\n")
    return 0


def _wait_for(call: Call, limit_s: float) -> None:
    ends = time.monotonic() + limit_s
    while True:
        try:
            call.session.call("GET", "/version")
        except TransportError:
            if time.monotonic() >= ends:
                raise
            time.sleep(_PAUSE_S)
        else:
            return


def _confirm(removed: int) -> None:
    keys = f"{removed} key{'s' * (removed != 1)}"
    answer = terminal.choose(f"remove {keys}? [y/N] ")
    if answer is None:
        raise failure(f"--prune would remove {keys}, and there is no terminal to ask on: add --yes")
    if answer != "y":
        raise failure("nothing was changed", CONFLICT)


class _Writes:
    """The writes of one call: together where the server can, else one by one."""

    def __init__(self, call: Call, changes: list[Change], index: int) -> None:
        self._call = call
        self._index = index
        # A key of a transaction is not below another one: directories with a time come first, those
        # that are there last, the deepest first.
        directories = [one for one in changes if one.is_dir]
        self._before = [
            one for one in directories if one.before is None and dict(_fields(one)).get("ttl")
        ]
        self._behind = [one for one in reversed(directories) if one.before is not None]
        alone = {one.key for one in (*self._before, *self._behind)}
        self._together = [one for one in changes if one.key not in alone]
        self._count = len(changes)
        self._done: list[int] = []

    def run(self) -> list[int]:
        """Write everything; return the indexes.

        Raises:
            Failure: a key was changed after it was read.
        """
        for change in self._before:
            self._one(change)
        if not (self._together and self._has_transactions() and self._transaction()):
            for change in self._together:
                self._one(change)
        for change in self._behind:
            self._one(change)
        return self._done

    def _has_transactions(self) -> bool:
        extras = self._call.session.run(self._call.session.operations.extras())
        return "txn" in extras and len(self._together) <= _TRANSACTION_MAX

    def _transaction(self) -> bool:
        """Write all files in one transaction; return whether it was not too large for one."""
        body = json.dumps({"ops": [_operation(change) for change in self._together]}).encode()
        try:
            reply = self._call.session.call("POST", "/v2/txn", body=body, content_type=JSON)
        except _CONFLICTS as error:
            raise self._conflict(error, self._named_by(error)) from error
        except ApiError as error:
            if error.status != _TOO_LARGE:
                raise
            return False
        self._done += [event["node"]["modifiedIndex"] for event in json_of(reply)["events"]]
        return True

    def _named_by(self, error: ApiError) -> Change | None:
        """Return the change that a refusal is about, where it says so."""
        numbers = re.fullmatch(r"\[(\d+) != (\d+)\]", error.cause)
        if numbers:
            index = int(numbers[1])
            found = [one for one in self._together if one.before and _index(one) == index]
            return found[0] if len(found) == 1 else None
        return next((one for one in self._together if one.key == error.cause), None)

    def _one(self, change: Change) -> None:
        try:
            index = _write(self._call, change)
        except _CONFLICTS as error:
            raise self._conflict(error, change) from error
        self._done.append(index)

    def _conflict(self, error: ApiError, change: Change | None) -> Exception:
        key = "a key" if change is None else change.key
        numbers = re.fullmatch(r"\[\d+ != (\d+)\]", error.cause)
        match error:
            case CompareFailed() if numbers:
                what = f"was changed at {numbers[1]}"
            case KeyNotFound():
                what = "was removed"
            case KeyExists():
                what = "was created"
            case _:
                what = "was changed"
        return failure(
            f"{key} {what}, after it was read ({self._index}): "
            f"{len(self._done)} of {self._count} changes applied, run again",
            CONFLICT,
        )


def _index(change: Change) -> int:
    assert change.before is not None
    return change.before.modified_index


def _fields(change: Change) -> Iterator[tuple[str, Any]]:
    """Yield what a write of a key carries besides its value."""
    if change.after is not None and (ttl := seconds(change.after)) is not None:
        yield "ttl", ttl
    if change.is_dir:
        yield "dir", True


def _operation(change: Change) -> dict[str, object]:
    """Return a change as an operation of `POST /v2/txn`."""
    fields: dict[str, object] = {"key": change.key, **dict(_fields(change))}
    if change.before is not None:
        fields["prevIndex"] = _index(change)
    if change.after is None:
        return fields | {"action": "compareAndDelete"}
    if change.after.value is not None:
        try:
            fields["value"] = change.after.value.decode()
        except UnicodeDecodeError:
            fields["valueBase64"] = base64.b64encode(change.after.value).decode()
    return fields | {"action": "create" if change.before is None else "compareAndSwap"}


def _write(call: Call, change: Change) -> int:
    """Make one change; return its index."""
    operations = call.session.operations
    fields = dict(_fields(change))
    path = operations.path(change.key)
    if change.before is None:
        fields["prevExist"] = False
    elif change.is_dir:  # an index is no condition for a directory
        fields |= {"prevExist": True} if change.after is not None else {}
    else:
        fields["prevIndex"] = _index(change)
    if change.after is None:
        reply = call.session.call("DELETE", path, query=fields)
    elif change.after.value is None:
        reply = call.session.call("PUT", path, form=fields)
    else:
        try:
            text = change.after.value.decode()
        except UnicodeDecodeError:
            call.session.run(operations.require("raw"))
            reply = call.session.call(
                "PUT",
                operations.path(change.key, raw=True),
                query=fields,
                body=change.after.value,
                content_type="application/octet-stream",
            )
        else:
            reply = call.session.call("PUT", path, form={**fields, "value": text})
    index: int = json_of(reply)["node"]["modifiedIndex"]
    return index
