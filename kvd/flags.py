"""The flags: one table, from which parsing, defaults and `--help` all come.

Syntax, as in etcd (Go's flag package): one dash or two, `--flag value` or `--flag=value`; a switch
is `--flag` or `--flag=true`; of a flag given twice the last one rules. What a value means is said
in `kvd.config`; here it is only text.
"""

import difflib
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

EXIT_USAGE = 64  # EX_USAGE of sysexits.h


class ConfigError(Exception):
    """A command line that cannot be followed; the text is one line for the person who typed it."""

    exit_status = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Flag:
    """One row of the table.

    Attributes:
        name: Without dashes.
        default: The text that stands for it when it is not given.
        value: What `--help` calls its value; empty for a switch.
        help: What it does, without a period.
        group: The heading under which `--help` lists it.
        repeats: Given more than once it is a list: the texts are joined by commas.
    """

    name: str
    default: str
    value: str
    help: str
    group: str
    repeats: bool = False


MEMBER, STORAGE, LIMITS, OTHER = "Member", "Storage", "Limits", "Other"
# Flags of etcd that change nothing on a single member that serves the v2 API.
NO_EFFECT = "Accepted for etcd's sake, without effect on a single member"

FLAGS = (
    Flag("name", "default", "NAME", "name of this member", MEMBER),
    Flag(
        "listen-client-urls",
        "http://127.0.0.1:2379",
        "URL,...",
        "where to serve clients; port 0 takes a free one",
        MEMBER,
    ),
    Flag(
        "advertise-client-urls",
        "",
        "URL,...",
        "the URLs that clients are told to use (default: the ones listened on)",
        MEMBER,
    ),
    Flag(
        "cors",
        "",
        "ORIGIN,...",
        "origins whose pages may use the API in a browser; * is every one (default: none)",
        MEMBER,
    ),
    Flag("data-dir", "data", "DIR", "where the data is kept", STORAGE),
    Flag(
        "snapshot-count",
        "",
        "N",
        "make a snapshot every N log records (default: when the log has outgrown the last one)",
        STORAGE,
    ),
    Flag("event-history-limit", "1000", "N", "how many events a watch can look back", STORAGE),
    Flag("wal-segment-bytes", str(64 * 1024 * 1024), "N", "size of a segment of the log", STORAGE),
    Flag("rebuild-index", "false", "", "build the index anew from snapshot and log", STORAGE),
    Flag("max-header-bytes", "65536", "N", "limit of request line and headers together", LIMITS),
    Flag(
        "max-connections",
        "",
        "N",
        "limit of open connections (default: by the limit of open files)",
        LIMITS,
    ),
    Flag(
        "max-watchers",
        "",
        "N",
        "limit of waiting watches (default: as many as there may be connections)",
        LIMITS,
    ),
    # etcd never closes an idle connection and its clients keep theirs: an hour only finds the dead.
    Flag("idle-timeout-s", "3600", "SECONDS", "close a connection without requests", LIMITS),
    Flag("header-timeout-s", "30", "SECONDS", "how long the head of a request may take", LIMITS),
    Flag("body-timeout-s", "60", "SECONDS", "how long the body of a request may take", LIMITS),
    Flag(
        "enable-failpoints",
        "false",
        "",
        "allow --failpoint: faults on purpose, for experiments with crashes",
        OTHER,
    ),
    Flag(
        "failpoint",
        "",
        "NAME=ACTION,...",
        "make a fault: crash, error:ERRNO, delay:SECONDS, tear:BYTES or short:BYTES at a named "
        "place, @N for the Nth time only; may be given again; kvdctl failpoints lists the places",
        OTHER,
        repeats=True,
    ),
    Flag("log-format", "text", "FORMAT", "text, or json: one object per line", OTHER),
    Flag("access-log", "false", "", "log each request when it has been answered", OTHER),
    Flag("log-level", "info", "LEVEL", "debug, info, warn, error, panic or fatal", OTHER),
    Flag("enable-v2", "true", "", "etcd's switch for the API, which is always on here", OTHER),
    Flag("version", "false", "", "print the version and exit", OTHER),
    Flag("help", "false", "", "print this text and exit", OTHER),
    Flag("listen-peer-urls", "", "URL,...", "", NO_EFFECT),
    Flag("initial-advertise-peer-urls", "", "URL,...", "", NO_EFFECT),
    Flag("initial-cluster", "", "NAME=URL,...", "", NO_EFFECT),
    Flag("initial-cluster-state", "", "STATE", "", NO_EFFECT),
    Flag("initial-cluster-token", "", "TOKEN", "", NO_EFFECT),
    Flag("initial-election-tick-advance", "", "", "", NO_EFFECT),
    Flag("heartbeat-interval", "", "MS", "", NO_EFFECT),
    Flag("election-timeout", "", "MS", "", NO_EFFECT),
    Flag("pre-vote", "", "", "", NO_EFFECT),
    Flag("strict-reconfig-check", "", "", "", NO_EFFECT),
    Flag("max-snapshots", "", "N", "", NO_EFFECT),
    Flag("max-wals", "", "N", "", NO_EFFECT),
    Flag("quota-backend-bytes", "", "N", "", NO_EFFECT),
    Flag("backend-batch-interval", "", "TIME", "", NO_EFFECT),
    Flag("backend-batch-limit", "", "N", "", NO_EFFECT),
    Flag("auto-compaction-mode", "", "MODE", "", NO_EFFECT),
    Flag("auto-compaction-retention", "", "TIME", "", NO_EFFECT),
    Flag("max-txn-ops", "", "N", "", NO_EFFECT),
    Flag("max-concurrent-streams", "", "N", "", NO_EFFECT),
    Flag("grpc-keepalive-min-time", "", "TIME", "", NO_EFFECT),
    Flag("grpc-keepalive-interval", "", "TIME", "", NO_EFFECT),
    Flag("grpc-keepalive-timeout", "", "TIME", "", NO_EFFECT),
    Flag("logger", "", "NAME", "", NO_EFFECT),
    Flag("log-outputs", "", "TARGET,...", "", NO_EFFECT),
    Flag("log-package-levels", "", "LEVELS", "", NO_EFFECT),
)
_BY_NAME = {flag.name: flag for flag in FLAGS}
_ALIASES = {"h": "help"}

_HELP_WIDTH = 96
_HELP_INDENT = " " * 34


def split(argv: Sequence[str]) -> dict[Flag, str]:
    """Take a command line apart into the flags it names and the texts of their values.

    Raises:
        ConfigError: A word is no flag, a flag is unknown or lacks its value.
    """
    given: dict[Flag, str] = {}
    words = iter(argv)
    for word in words:
        name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
        if not word.startswith("-") or not name or name.startswith("-"):
            raise ConfigError(f"{shown(word)} is no flag; see kvd --help")
        flag = _BY_NAME.get(_ALIASES.get(name, name))
        if flag is None:
            raise ConfigError(_unknown(name))
        if not equals:
            text = _value_after(flag, words) if flag.value else "true"
        given[flag] = f"{given[flag]},{text}" if flag.repeats and flag in given else text
    return given


def help_text() -> str:
    """What `--help` prints, with its closing newline."""
    lines = [
        "usage: kvd [flags]",
        "",
        "A durable configuration store that serves the etcd v2 HTTP API.",
        "Flags are etcd's: one dash or two, `--flag value` or `--flag=value`.",
    ]
    for group in (MEMBER, STORAGE, LIMITS, OTHER):
        lines += ["", f"{group}:"]
        for flag in FLAGS:
            if flag.group == group:
                lines += _help_lines(flag)
    names = ", ".join(f"--{flag.name}" for flag in FLAGS if flag.group == NO_EFFECT)
    lines += ["", f"{NO_EFFECT}:"]
    lines += textwrap.wrap(
        names, _HELP_WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )
    return "\n".join(lines) + "\n"


def shown(text: str) -> str:
    """A text in quotes for a message of one line, whatever is in it."""
    return f'"{text}"' if text.isprintable() else ascii(text)


def _value_after(flag: Flag, words: Iterator[str]) -> str:
    word = next(words, None)
    if word is None:
        raise ConfigError(f"--{flag.name} needs a value: --{flag.name} {flag.value}")
    # `--data-dir --rebuild-index` is a value forgotten far more likely than a directory's name.
    if word.startswith("-") and word.lstrip("-").partition("=")[0] in _BY_NAME:
        raise ConfigError(
            f"--{flag.name} needs a value before {word} (or write --{flag.name}={word})"
        )
    return word


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _BY_NAME, n=1)
    hint = f"did you mean --{near[0]}?" if near else "see kvd --help"
    return f"unknown flag {shown('--' + name)}; {hint}"


def _help_lines(flag: Flag) -> list[str]:
    head = f"  --{flag.name} {flag.value}".rstrip()
    default = f" (default: {flag.default})" if flag.value and flag.default else ""
    body = textwrap.wrap(
        flag.help + default,
        _HELP_WIDTH,
        initial_indent=_HELP_INDENT,
        subsequent_indent=_HELP_INDENT,
        break_on_hyphens=False,
    )
    if len(head) + 2 > len(_HELP_INDENT):
        return [head, *body]
    return [head.ljust(len(_HELP_INDENT)) + body[0].lstrip(), *body[1:]]
