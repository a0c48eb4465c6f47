"""Values: `get`, `set`, `mk`, `update`."""

from __future__ import annotations

import click

from kvd.ctl.command import Call, Verb, pass_call
from kvd.ctl.etcdctl.output import explained, print_answer, read, wrong
from kvd.ctl.failures import USAGE, Failure


def key_of(args: tuple[str, ...]) -> str:
    """Return the key of a command line.

    Raises:
        Failure: there is none.
    """
    if not args:
        raise wrong("key required")
    return args[0]


@click.command(cls=Verb, explain=explained, help="Print the value of a key.")
@click.argument("args", nargs=-1, metavar="KEY")
@click.option("--sort", is_flag=True, help="accepted, as etcdctl's")
@click.option("--quorum", "-q", is_flag=True, help="let a cluster agree on the answer")
@pass_call
def get(call: Call, args: tuple[str, ...], *, sort: bool, quorum: bool) -> None:
    """Print the value of a key."""
    path = call.session.path(key_of(args))
    query = {"quorum": quorum, "recursive": False, "sorted": sort}
    reply = call.session.call("GET", path, query=query)
    told = read(reply)
    if told["node"].get("dir"):
        raise Failure(f"{told['node'].get('key', '/')}: is a directory", USAGE)
    print_answer(told, reply.index, call.settings.output)
