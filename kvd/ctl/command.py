"""Commands as click has them, with Go's way of writing flags and the settings of every verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from kvd.client.errors import KvdError
from kvd.ctl.failures import UNKNOWN_VERB, Failure, explained, failure
from kvd.ctl.goflags import as_click, leading
from kvd.ctl.settings import Settings
from kvd.descriptors import discard_output
from kvd.lines import printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from kvd.ctl.session import Session

Explain = Callable[[KvdError, Settings], Failure]

HELP_NAMES: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
_SHORT_SETTINGS = ("-C", "-u", "-o")


class Call:
    """One call of kvdctl: its settings, and its connection once a verb needs it."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    @cached_property
    def settings(self) -> Settings:
        """The settings."""
        return Settings(self.given)

    @cached_property
    def session(self) -> Session:
        """The connection to the server."""
        from kvd.ctl.session import Session  # noqa: PLC0415 -- offline verbs need none

        return Session(self.settings)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if "session" in self.__dict__:
            self.session.close()

    @property
    def is_json(self) -> bool:
        """Whether the output is JSON.

        Raises:
            Failure: the format is unknown.
        """
        output = self.settings.output
        if output not in ("simple", "extended", "json"):
            raise failure(f"--output: expected simple, extended or json, got {output!r}")
        return output == "json"


pass_call = click.make_pass_decorator(Call)

# Name, flags, metavar (none: it has no value), help.
_SETTINGS: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    (
        "endpoints",
        ("--endpoints", "--endpoint", "--peers", "-C"),
        "A,B",
        "URLs of the server, tried in order",
    ),
    ("ca_file", ("--ca-file",), "FILE", "certificates that server certificates are checked with"),
    ("cert_file", ("--cert-file",), "FILE", "client certificate"),
    ("key_file", ("--key-file",), "FILE", "key of the client certificate"),
    ("username", ("--username", "-u"), "NAME[:PASSWORD]", "user of the store"),
    ("password_file", ("--password-file",), "FILE", "file with the password of the user"),
    ("timeout", ("--timeout",), "DURATION", "limit of one connection (2s)"),
    ("total_timeout", ("--total-timeout",), "DURATION", "limit of a request (5s)"),
    ("output", ("--output", "-o"), "FORMAT", "simple, extended or json"),
    ("debug", ("--debug",), "", "print each request as a curl command"),
    ("no_sync", ("--no-sync",), "", "accepted, as etcdctl's: members are never requested"),
    ("color", ("--color",), "WHEN", "auto, always or never"),
    ("profile", ("--profile",), "NAME", "profile of the configuration file"),
)


def _note(context: click.Context, option: click.Parameter, value: object) -> None:
    name = option.name or ""
    if value or (value == "" and name.endswith("timeout")):  # other empty ones are none to etcdctl
        context.ensure_object(Call).given[name] = value


def settings(*, hidden: bool = False, without: Sequence[str] = ()) -> list[click.Option]:
    """Return the options that every verb has, except some flags that a verb has for itself."""
    found = []
    for name, flags, metavar, text in _SETTINGS:
        own = [flag for flag in flags if flag not in without]
        if own:
            found.append(
                click.Option(
                    [*own, name],
                    metavar=metavar or None,
                    is_flag=not metavar,
                    default=None,
                    help=text,
                    hidden=hidden,
                    expose_value=False,
                    callback=_note,
                )
            )
    return found


def keys(context: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Return the keys of the server that begin with a text, for a shell that completes it."""
    from kvd.ctl import completion  # noqa: PLC0415 -- only where a shell completes

    return completion.keys(context, parameter, text)


class Verb(click.Command):
    """A verb: the settings may also be behind it, and flags may be written as Go's.

    Args:
        explain: returns the failure for an error of the client; by default kvdctl's own words.
        takes_text: whether its second argument may look like a flag, as a value does; such as the
            short flags of the settings.
        is_ordered: whether its flags are before its arguments, and `--` stays among these.
    """

    def __init__(
        self,
        *args: Any,
        explain: Explain | None = None,
        takes_text: bool = False,
        is_ordered: bool = False,
        **attributes: Any,
    ) -> None:
        attributes["context_settings"] = HELP_NAMES | {
            "ignore_unknown_options": takes_text and is_ordered,
            "allow_interspersed_args": not is_ordered,
        }
        super().__init__(*args, **attributes)
        self._explain = explain
        self._takes_text = takes_text
        self._is_ordered = is_ordered

    @cached_property
    def _common(self) -> list[click.Option]:
        taken = [name for parameter in self.params for name in parameter.opts]
        if self._is_ordered:  # what follows are the arguments of a command
            taken += _SHORT_SETTINGS
        return settings(hidden=True, without=taken)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return its own parameters, then the hidden ones of every verb."""
        return [*super().get_params(ctx), *self._common]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples of the manual, which are tested, and where there is more."""
        from kvd.ctl import manual  # noqa: PLC0415 -- for the help alone

        if lines := manual.examples(ctx.command_path):
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in lines))
        formatter.write_paragraph()
        formatter.write_text(
            "Flags of the server and the user: `kvdctl --help`. More: `kvdctl help kvdctl`."
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the flags behind the verb."""
        if self._is_ordered:
            found = leading(args, self.get_params(ctx))
        else:
            texts = _SHORT_SETTINGS if self._takes_text else ()
            found = as_click(args, self.get_params(ctx), texts)
        return super().parse_args(ctx, found)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb.

        Raises:
            Failure: the client has raised an error.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of the output has closed it; click makes 1 of it
            discard_output()
            return 0
        except KvdError as error:
            if self._explain is None:
                raise explained(error) from error
            raise self._explain(error, ctx.ensure_object(Call).settings) from error


def meant(word: str, words: Sequence[str]) -> str:
    """Return a question that names what a wrong word may mean; empty without a likely one."""
    from difflib import get_close_matches  # noqa: PLC0415 -- for errors alone

    found = get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


class Group(click.Group):
    """A verb with verbs of its own; without one it prints its help."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        attributes.setdefault("context_settings", HELP_NAMES)
        attributes |= {"invoke_without_command": True, "no_args_is_help": False}
        super().__init__(*args, callback=_without_verb, **attributes)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb that the arguments name.

        Raises:
            Failure: there is none of that name.
        """
        if self.get_command(ctx, args[0]) is None:
            text = f"No help topic for '{printable(args[0])}'"
            raise Failure(text + meant(args[0], self.list_commands(ctx)), UNKNOWN_VERB)
        return super().resolve_command(ctx, args)


@click.pass_context
def _without_verb(context: click.Context) -> None:
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


class Root(Group):
    """The command itself: its verbs are imported when they are named."""

    def __init__(
        self,
        *args: Any,
        find: Callable[[str], click.Command | None],
        sections: Sequence[tuple[str, Mapping[str, Any]]],
        **attributes: Any,
    ) -> None:
        super().__init__(*args, **attributes)
        self._find = find
        self._sections = sections

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all verbs."""
        return [name for _, verbs in self._sections for name in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb."""
        return self._find(cmd_name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the flags before the verb."""
        return super().parse_args(ctx, leading(args, self.params))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs, without importing any."""
        for title, verbs in self._sections:
            with formatter.section(title):
                formatter.write_dl([(name, entry.text) for name, entry in verbs.items()])
