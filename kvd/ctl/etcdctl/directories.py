"""Directories, listings and removal: `mkdir`, `setdir`, `updatedir`, `ls`, `rm`, `rmdir`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from kvd.client.exchanges import json_of
from kvd.ctl.command import Call, Verb, keys, pass_call
from kvd.ctl.etcdctl.output import Json, explained, print_answer, write
from kvd.ctl.etcdctl.values import TTL, key_of, unsigned
from kvd.ctl.goflags import INTEGER
from kvd.ctl.terminal import shown

if TYPE_CHECKING:
    from kvd.client.operations import Given

_KEY = click.argument("args", nargs=-1, metavar="KEY", shell_complete=keys)


def _make(call: Call, args: tuple[str, ...], ttl: int, query: Given) -> None:
    path = call.session.path(key_of(args))
    form = {"ttl": ttl if ttl > 0 else None}
    reply = call.session.call("PUT", path, query={"dir": True, **query}, form=form)
    if call.settings.output != "simple":
        print_answer(json_of(reply), reply.index, call.settings.output)


@click.command(cls=Verb, explain=explained, help="Create a directory.")
@_KEY
@TTL
@pass_call
def mkdir(call: Call, args: tuple[str, ...], *, ttl: int) -> None:
    """Create a directory."""
    _make(call, args, ttl, {"prevExist": False})


@click.command(cls=Verb, explain=explained, help="Make a directory, also of a file.")
@_KEY
@TTL
@pass_call
def setdir(call: Call, args: tuple[str, ...], *, ttl: int) -> None:
    """Make a directory, also of a file."""
    _make(call, args, ttl, {})


@click.command(cls=Verb, explain=explained, help="Change the time to live of a directory.")
@_KEY
@TTL
@pass_call
def updatedir(call: Call, args: tuple[str, ...], *, ttl: int) -> None:
    """Change the time to live of a directory."""
    _make(call, args, ttl, {"prevExist": True})


def _remove(call: Call, args: tuple[str, ...], query: Given) -> None:
    reply = call.session.call("DELETE", call.session.path(key_of(args)), query=query)
    answer = json_of(reply)
    if not answer["node"].get("dir") or call.settings.output != "simple":
        print_answer(answer, reply.index, call.settings.output)


@click.command(cls=Verb, explain=explained, help="Remove a key.")
@_KEY
@click.option("--dir", "is_dir", is_flag=True, help="an empty directory too")
@click.option("--recursive", "-r", is_flag=True, help="a directory too, with all below it")
@click.option("--with-value", metavar="VALUE", help="only if it has this value")
@click.option("--with-index", type=INTEGER, metavar="N", help="only if it was changed at N last")
@pass_call
def rm(
    call: Call,
    args: tuple[str, ...],
    *,
    is_dir: bool,
    recursive: bool,
    with_value: str | None,
    with_index: int | None,
) -> None:
    """Remove a key."""
    query = {
        "dir": is_dir or None,
        "prevIndex": unsigned(with_index),
        "prevValue": with_value or None,
        "recursive": recursive or None,
    }
    _remove(call, args, query)


@click.command(cls=Verb, explain=explained, help="Remove an empty directory, or a key.")
@_KEY
@pass_call
def rmdir(call: Call, args: tuple[str, ...]) -> None:
    """Remove an empty directory, or a key."""
    _remove(call, args, {"dir": True})


@click.command(cls=Verb, explain=explained, help="List a directory.")
@click.argument("args", nargs=-1, metavar="[KEY]", shell_complete=keys)
@click.option("--sort", is_flag=True, help="in the order of the names")
@click.option("--recursive", "-r", is_flag=True, help="all below it too")
@click.option("-p", "slashes", is_flag=True, help="directories with / at the end")
@click.option("--quorum", "-q", is_flag=True, help="let a cluster agree on the answer")
@click.option("-l", "is_long", is_flag=True, help="with size, modified index and TTL")
@pass_call
def ls(
    call: Call,
    args: tuple[str, ...],
    *,
    sort: bool,
    recursive: bool,
    slashes: bool,
    quorum: bool,
    is_long: bool,
) -> None:
    """List a directory."""
    path = call.session.path(args[0] if args else "/")
    query = {"quorum": quorum, "recursive": recursive, "sorted": sort}
    reply = call.session.call("GET", path, query=query)
    answer = json_of(reply)
    if call.settings.output != "simple":
        print_answer(answer, reply.index, call.settings.output)
        return
    line = _long if is_long else _short
    is_terminal = sys.stdout.isatty()
    write(
        "".join(
            f"{shown(line(node, slashes=slashes), is_terminal=is_terminal)}\n"
            for node in _listed(answer["node"])
        )
    )


def _listed(node: Json) -> Iterator[Json]:
    """Yield what a listing shows: a file itself, or all nodes of the answer, parents first."""
    if not node.get("dir"):
        yield node
    waiting: list[Mapping[str, Any]] = list(reversed(node.get("nodes") or ()))
    while waiting:
        child = waiting.pop()
        yield child
        waiting += reversed(child.get("nodes") or ())


def _short(node: Json, *, slashes: bool) -> str:
    return f"{node['key']}/" if slashes and node.get("dir") else str(node["key"])


def _long(node: Json, *, slashes: bool) -> str:
    size = "-" if node.get("dir") else len(node.get("value", "").encode("utf-8", "replace"))
    ttl = f"{node['ttl']}s" if "ttl" in node else "-"
    name = _short(node, slashes=True)
    return f"{size:>9} {node.get('modifiedIndex', 0):>9} {ttl:>9}  {name}"
