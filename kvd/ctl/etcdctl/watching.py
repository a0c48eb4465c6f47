"""Watches: `watch` and `exec-watch`, one long poll after the other, as etcdctl's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from time import sleep

import click

from kvd.client.errors import ClusterChanged, KvdError, ServerRefused, TransportError
from kvd.client.exchanges import refusal
from kvd.client.wire import Call as Request
from kvd.client.wire import Operation, Reply, Stream
from kvd.ctl.command import Call, Verb, keys, pass_call
from kvd.ctl.etcdctl.output import Json, explained, print_answer, write, wrong
from kvd.ctl.etcdctl.values import key_of
from kvd.ctl.failures import USAGE, Failure, failure
from kvd.ctl.goflags import INTEGER

_PAUSE_S = 0.05
_PAUSE_MAX_S = 2.0

_RECURSIVE = click.option("--recursive", "-r", is_flag=True, help="all keys below it too")
_AFTER = click.option(
    "--after-index", type=INTEGER, default=0, metavar="N", help="events behind this index"
)


@click.command(cls=Verb, explain=explained, help="Print the next event of a key.")
@click.argument("args", nargs=-1, metavar="KEY", shell_complete=keys)
@click.option("--forever", "-f", is_flag=True, help="go on until Ctrl-C")
@_AFTER
@_RECURSIVE
@pass_call
def watch(
    call: Call, args: tuple[str, ...], *, forever: bool, after_index: int, recursive: bool
) -> None:
    """Print the next event of a key."""
    key = key_of(args)
    try:
        for answer, index in _events(call, key, after_index, recursive=recursive):
            if answer["node"].get("dir"):
                continue
            if recursive:
                write(f"[{answer['action']}] {answer['node']['key']}\n")
            print_answer(answer, index, call.settings.output)
            if not forever:
                return
    except KeyboardInterrupt:
        return


@click.command(
    cls=Verb,
    explain=explained,
    takes_text=True,
    is_ordered=True,
    help="Run a command at each event of a key, with ETCD_WATCH_ACTION, ETCD_WATCH_KEY, "
    "ETCD_WATCH_VALUE and ETCD_WATCH_MODIFIED_INDEX in its environment.",
)
@click.argument(
    "args", nargs=-1, type=click.UNPROCESSED, metavar="KEY -- COMMAND...", shell_complete=keys
)
@_AFTER
@_RECURSIVE
@pass_call
def exec_watch(call: Call, args: tuple[str, ...], *, after_index: int, recursive: bool) -> None:
    """Run a command at each event of a key."""
    key, command = _command_of(args)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the status of a command is ignored
    try:
        for answer, _ in _events(call, key, after_index, recursive=recursive):
            node = answer["node"]
            if node.get("dir"):
                sys.stderr.write(f"Ignored dir {node['key']} change")
                continue
            of_event = {
                "ETCD_WATCH_ACTION": answer["action"],
                "ETCD_WATCH_KEY": node["key"],
                "ETCD_WATCH_MODIFIED_INDEX": str(node["modifiedIndex"]),
                "ETCD_WATCH_VALUE": node.get("value", "").replace("\0", ""),
            }
            _start(command, of_event)
    except KeyboardInterrupt:
        return


def _command_of(args: tuple[str, ...]) -> tuple[str, list[str]]:
    """Return key and command: the key is first where `--` is behind it, and last else."""
    if "--" in args[1:]:
        end = args.index("--", 1)
        key, command = args[0], list(args[end + 1 :])
        if key.startswith("-"):
            raise failure(f"exec-watch: there is no flag {key}")
        if end > 1:
            raise failure("exec-watch: flags are before the key")
    else:
        key, command = (args or [""])[-1], list(args[:-1])
    if not command:
        raise wrong("key and command to exec required")
    return key, command


def _start(command: list[str], of_event: dict[str, str]) -> None:
    sys.stdout.flush()
    try:
        subprocess.Popen(command, env=os.environ | of_event)  # noqa: S603 -- that is what it is for
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        text = f"fork/exec {command[0]}: {reason}"
        if "/" not in command[0] and isinstance(error, FileNotFoundError):
            text = f'exec: "{command[0]}": executable file not found in $PATH'
        raise Failure(text, USAGE) from None


def _events(call: Call, key: str, after: int, *, recursive: bool) -> Iterator[tuple[Json, int]]:
    """Yield the events behind an index, each with the store's index when its poll began.

    Once the server has answered, it is waited for over restarts.

    Raises:
        KvdError: the watch was refused, or the server cannot be reached at the beginning.
    """
    wait_index = after + 1 if after > 0 else None
    pause = _PAUSE_S
    cluster_id = ""
    while True:
        try:
            stream = call.session.run(_opened(call, key, wait_index, recursive=recursive))
            try:
                cluster_id = _same(cluster_id, stream)
                wait_index = wait_index or stream.answer.index() + 1
                body = call.session.run(_body(stream))
            finally:
                stream.connection.close()
        except (TransportError, ServerRefused):
            if not cluster_id:
                raise
            sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX_S)
            continue
        pause = _PAUSE_S
        if body is None:  # no event up to the index of the head
            wait_index = max(wait_index, stream.answer.index() + 1)
            continue
        answer = _read(body)
        wait_index = answer["node"]["modifiedIndex"] + 1
        yield answer, stream.answer.index()


def _opened(call: Call, key: str, wait_index: int | None, *, recursive: bool) -> Operation[Stream]:
    operations = call.session.operations
    query = {"recursive": str(recursive).lower(), "wait": "true"}
    if wait_index is not None:
        query["waitIndex"] = str(wait_index)
    return operations.exchanges.open(Request("GET", operations.path(key), query))


def _same(cluster_id: str, stream: Stream) -> str:
    """Return the id of the store that answers.

    Raises:
        ClusterChanged: it is another one than before.
    """
    answered = stream.answer.headers.get("x-etcd-cluster-id", "-")
    if stream.answer.status == 200 and cluster_id not in ("", answered):
        raise ClusterChanged(cluster_id, answered)
    return cluster_id if stream.answer.status != 200 else answered


def _body(stream: Stream) -> Operation[bytes | None]:
    body = yield from stream.line(None)
    answer = stream.answer
    if answer.status != 200:
        reply = Reply(answer.status, answer.headers, body or b"", answer.index())
        raise refusal(reply, is_write=False)
    return body


def _read(body: bytes) -> Json:
    try:
        answer: Json = json.loads(body)
    except ValueError:
        raise KvdError(f"the response is no JSON: {body[:200]!r}") from None
    return answer
