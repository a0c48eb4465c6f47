"""`completion`: the scripts that let shells complete command lines."""

from __future__ import annotations

import click

from kvd.ctl.command import Verb
from kvd.ctl.completion import SHELLS, VARIABLE
from kvd.ctl.etcdctl.output import write


@click.command(cls=Verb, help="Print the script that completes verbs, flags and keys in a shell.")
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(context: click.Context, *, shell: str) -> None:
    """Print the script for a shell."""
    write(SHELLS[shell](context.find_root().command, {}, "kvdctl", VARIABLE).source() + "\n")
