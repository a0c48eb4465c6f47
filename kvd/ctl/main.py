"""`kvdctl`: the verbs of etcdctl, verbs of its own, and verbs that work on the files of a store.

A verb is imported when it is named (`table.py`). This is the edge of the process: every error
becomes one line and an exit status here (`failures.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from kvd import __version__
from kvd.ctl.command import Call, Root, meant, settings
from kvd.ctl.failures import BUG, INTERRUPTED, IO_ERROR, USAGE, Failure
from kvd.ctl.table import SECTIONS, VERBS
from kvd.descriptors import discard_output, open_standard_descriptors
from kvd.lines import printable

if TYPE_CHECKING:
    from kvd.ctl.table import Entry

NAME = "kvdctl"
_COMPLETE = "_KVDCTL_COMPLETE"


def main(argv: Sequence[str] | None = None, *, is_interruptible: bool = False) -> int:
    """Run one verb; return its exit status.

    Args:
        argv: the arguments, by default those of the process.
        is_interruptible: whether SIGINT is to raise KeyboardInterrupt again.
    """
    open_standard_descriptors()
    args = list(sys.argv[1:] if argv is None else argv)
    if _COMPLETE in os.environ:
        return _complete(args, Call())
    return _run(args, Call(), is_interruptible=is_interruptible)


def _run(args: list[str], call: Call, *, is_interruptible: bool) -> int:  # noqa: PLR0911 -- one each
    try:
        if is_interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = ROOT.main(args, NAME, standalone_mode=False, obj=call) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has closed it
        discard_output()
        return 0
    except Failure as failure:
        return _end(failure.text, failure.status)
    except click.UsageError as error:
        return _end(_wrong(error), USAGE)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError):  # of the output, or of the terminal
            place = "" if error.filename is None else f"{error.filename}: "
            return _end(printable(f"{NAME}: {place}{error.strerror or error}"), IO_ERROR)
        if call.settings.is_on("debug"):
            raise
        reason = printable(f"{type(error).__name__}: {error}")
        return _end(f"{NAME}: a bug: {reason} (--debug shows where)", BUG)
    finally:
        call.close()
    return int(status)


def _complete(args: list[str], call: Call) -> int:
    """Answer a shell that completes a command line; silent whatever happens."""
    from kvd.ctl import completion  # noqa: PLC0415 -- only where a shell completes

    completion.prepare()
    try:
        with contextlib.redirect_stderr(None):
            ROOT.main(args, NAME, standalone_mode=False, obj=call)
    except (Exception, SystemExit):  # noqa: BLE001 -- an error would be in the command line
        return 0
    finally:
        call.close()
    return 0


def _end(text: str, status: int) -> int:
    """Print an error behind the output so far; return the status."""
    try:
        sys.stdout.flush()
    except OSError:  # it may be what has failed
        discard_output()
    if sys.stderr.isatty():  # what a server quotes of others' values does not steer a terminal
        text = "\n".join(map(printable, text.split("\n")))
    with contextlib.suppress(OSError):  # the status is all that is left
        sys.stderr.write(text + "\n")
    return status


def _wrong(error: click.UsageError) -> str:
    where = error.ctx.command_path if error.ctx is not None else NAME
    if isinstance(error, click.NoSuchOption):
        near = meant(error.option_name, error.possibilities or ())
        message = f"{error.message.removesuffix('.')}{near}"
    else:
        message = error.format_message().removesuffix(".")
    return f"{NAME}: {printable(message)}; see `{where} --help`"


class _Offline(click.Command):
    """A verb that works on files: it reads its arguments itself."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return []

    def invoke(self, ctx: click.Context) -> Any:
        if self.name == "help" and ctx.args and _is_verb_alone(ctx.args[0]):
            return ROOT.main([ctx.args[0], "--help"], NAME, standalone_mode=False)
        from kvd.ctl.offline import verbs  # noqa: PLC0415 -- it imports all of the storage

        assert self.name is not None
        return verbs.main([self.name, *ctx.args])


def _is_verb_alone(name: str) -> bool:
    """Return whether a name is that of a verb and not that of a page of the manual."""
    from kvd.ctl import manual  # noqa: PLC0415 -- for `help` alone

    return name in VERBS and name not in manual.topics()


def _find(name: str) -> click.Command | None:
    entry: Entry | None = VERBS.get(name)
    if entry is None:
        return None
    if not entry.place:
        return _Offline(name, help=entry.text, add_help_option=False)
    module, _, attribute = entry.place.partition(":")
    found: click.Command = getattr(import_module(f"kvd.ctl.{module}"), attribute)
    return found


def _version() -> click.Option:
    def show(context: click.Context, _: click.Parameter, value: object) -> None:
        if value:
            click.echo(f"{NAME} {__version__}")
            context.exit()

    return click.Option(
        ["--version", "-v"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="print the version",
    )


ROOT = Root(
    NAME,
    find=_find,
    sections=SECTIONS,
    params=[*settings(), _version()],
    help="Reads and changes the keys of a kvd or an etcd, and looks after the data directories "
    "of kvd. `kvdctl help` lists the pages of the manual.",
)

if __name__ == "__main__":
    sys.exit(main())
