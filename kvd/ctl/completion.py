"""Completion of keys in shells: one level of the tree at a time, from the server, in a second.

click completes verbs and flags; this adds keys, and directories behind which no blank is put. It
is silent where the server cannot be asked, and never asks for a password.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from kvd.client.errors import KvdError
from kvd.ctl.failures import Failure

VARIABLE = "_KVDCTL_COMPLETE"
_LIMIT_S = 1.0
_KEYS_MAX = 1000
_NO_BLANK = "nospace"


def keys(context: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Return the keys that begin with a text, as far as the next slash."""
    if parameter.nargs == -1 and context.params.get(parameter.name or ""):
        return []  # the key is the first of these arguments
    try:
        return _keys(context.obj, text)
    except (Failure, KvdError, OSError):
        return []


def _keys(call: Any, text: str) -> list[CompletionItem]:
    import json  # noqa: PLC0415 -- only where a shell completes

    # A name server that is silent is no reason for a shell that is, too.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)
    limit = f"{_LIMIT_S:g}s"
    call.given |= {"timeout": limit, "total_timeout": limit, "never_ask": True, "debug": None}
    above, slash, name = text.rpartition("/")
    query = {"sorted": True, "limit": _KEYS_MAX, "keysOnly": True, "prefix": name or None}
    reply = call.session.call("GET", call.session.path(above or "/"), query=query)
    found = []
    for node in json.loads(reply.body)["node"].get("nodes") or ():
        child = node["key"].rpartition("/")[2]
        if child.startswith(name) and child.isprintable():
            is_dir = node.get("dir", False)
            value = above + slash + child + ("/" if is_dir else "")
            found.append(CompletionItem(value, type=_NO_BLANK if is_dir else "plain"))
    signal.setitimer(signal.ITIMER_REAL, 0)
    return found


class _Bash(BashComplete):
    source_template = BashComplete.source_template.replace(
        "elif [[ $type == 'plain' ]]; then",
        "elif [[ $type == 'nospace' ]]; then\n"
        '            COMPREPLY+=("$value")\n'
        "            compopt -o nospace\n"
        "        elif [[ $type == 'plain' ]]; then",
    )


class _Zsh(ZshComplete):
    source_template = ZshComplete.source_template.replace(
        'elif [[ "$type" == "dir" ]]; then',
        'elif [[ "$type" == "nospace" ]]; then\n'
        "            compadd -U -S '' -- \"$key\"\n"
        '        elif [[ "$type" == "dir" ]]; then',
    )


class _Fish(FishComplete):
    def format_completion(self, item: CompletionItem) -> str:
        """Return an item; fish puts no blank behind a slash."""
        if item.type == _NO_BLANK:
            item.type = "plain"
        return super().format_completion(item)


SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


def prepare() -> None:
    """Let click use these classes."""
    for name, kind in SHELLS.items():
        add_completion_class(kind, name)
