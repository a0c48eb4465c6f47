"""Values: `get`, `set`, `mk`, `update`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from kvd.client.exchanges import json_of
from kvd.ctl.command import Call, Verb, keys, pass_call
from kvd.ctl.etcdctl.output import explained, print_answer, wrong
from kvd.ctl.failures import USAGE, Failure, failure
from kvd.ctl.goflags import INTEGER

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvd.client.operations import Given

TTL = click.option("--ttl", type=INTEGER, default=0, metavar="S", help="seconds until it expires")
RAW = click.option("--raw", is_flag=True, help="bytes that need not be text (kvd only)")


def key_of(args: tuple[str, ...]) -> str:
    """Return the key of a command line; further arguments are ignored, as by etcdctl.

    Raises:
        Failure: there is none.
    """
    if not args:
        raise wrong("key required")
    return args[0]


def unsigned(index: int | None) -> int | None:
    """Return an index as etcdctl sends it: in 64 bits without sign, and 0 not at all."""
    return index % 2**64 if index else None


def _of_value(text: str) -> Callable[[Callable[..., Any]], Verb]:
    """Make a verb that takes a key and a value."""

    def make(function: Callable[..., Any]) -> Verb:
        argument = click.argument("args", nargs=-1, metavar="KEY [VALUE]", shell_complete=keys)
        return click.command(
            cls=Verb,
            explain=explained,
            takes_text=True,
            help=f"{text} The value is the rest of standard input where it is not given.",
        )(argument(pass_call(function)))

    return make


def _value_of(args: tuple[str, ...]) -> str:
    if len(args) > 1:
        return args[1]
    data = sys.stdin.buffer.read()
    if not data:
        raise wrong("value required")
    # Bytes that are no text reach the server as they are.
    return data.decode("utf-8", "surrogateescape")


@click.command(cls=Verb, explain=explained, help="Print the value of a key.")
@click.argument("args", nargs=-1, metavar="KEY", shell_complete=keys)
@click.option("--sort", is_flag=True, help="accepted, as etcdctl's")
@click.option("--quorum", "-q", is_flag=True, help="let a cluster agree on the answer")
@click.option("--raw", is_flag=True, help="exactly the bytes, without a newline (kvd only)")
@click.option("--at", type=click.IntRange(1), metavar="INDEX", help="as of an index (kvd only)")
@pass_call
def get(
    call: Call, args: tuple[str, ...], *, sort: bool, quorum: bool, raw: bool, at: int | None
) -> None:
    """Print the value of a key."""
    key = key_of(args)
    if raw and at is not None:
        raise failure("--raw and --at do not go together")
    if raw:
        sys.stdout.flush()
        value = call.session.run(call.session.operations.get_bytes(key))
        sys.stdout.buffer.write(value)
        return
    query: dict[str, str | int | bool | None]
    query = {"quorum": quorum, "recursive": False, "sorted": sort}
    if at is not None:
        call.session.run(call.session.operations.require("at"))
        query = {"at": at}
    reply = call.session.call("GET", call.session.path(key), query=query)
    answer = json_of(reply)
    if answer["node"].get("dir"):
        raise Failure(f"{answer['node'].get('key', '')}: is a directory", USAGE)
    print_answer(answer, reply.index, call.settings.output)


def _put(call: Call, key: str, query: Given, form: Given, *, method: str = "PUT") -> None:
    reply = call.session.call(method, call.session.path(key), query=query, form=form)
    print_answer(json_of(reply), reply.index, call.settings.output)


@_of_value("Set a key.")
@TTL
@click.option("--swap-with-value", metavar="VALUE", help="only if it has this value")
@click.option(
    "--swap-with-index", type=INTEGER, metavar="N", help="only if it was changed at N last"
)
@RAW
def set(  # noqa: A001 -- etcdctl's name
    call: Call,
    args: tuple[str, ...],
    *,
    ttl: int,
    swap_with_value: str | None,
    swap_with_index: int | None,
    raw: bool,
) -> None:
    """Set a key."""
    key = key_of(args)
    query = {"prevIndex": unsigned(swap_with_index), "prevValue": swap_with_value or None}
    if raw:
        _set_raw(call, key, args, ttl, query)
    else:
        _put(call, key, query, {"ttl": _seconds(ttl), "value": _value_of(args)})


def _set_raw(call: Call, key: str, args: tuple[str, ...], ttl: int, query: Given) -> None:
    if len(args) > 1:
        raise failure("--raw reads the value from standard input")
    call.session.run(call.session.operations.require("raw"))
    call.session.call(
        "PUT",
        call.session.operations.path(key, raw=True),
        query={**query, "ttl": _seconds(ttl)},
        body=sys.stdin.buffer.read(),
        content_type="application/octet-stream",
    )


def _seconds(ttl: int) -> int | None:
    return ttl if ttl > 0 else None


@_of_value("Create a key that is not there.")
@TTL
@click.option("--in-order", is_flag=True, help="below KEY, named so that it comes last")
def mk(call: Call, args: tuple[str, ...], *, ttl: int, in_order: bool) -> None:
    """Create a key."""
    key = key_of(args)
    form = {"ttl": _seconds(ttl), "value": _value_of(args)}
    if in_order:
        _put(call, key, {}, form, method="POST")
    else:
        _put(call, key, {"prevExist": False}, form)


@_of_value("Change the value of a key that is there.")
@TTL
def update(call: Call, args: tuple[str, ...], *, ttl: int) -> None:
    """Change the value of a key."""
    form = {"ttl": _seconds(ttl), "value": _value_of((key_of(args), *args[1:]))}
    _put(call, args[0], {"prevExist": True}, form)
