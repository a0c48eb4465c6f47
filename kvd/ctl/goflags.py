"""Flags as Go's `flag` and etcdctl read them, handed to click; durations and numbers of Go.

`-ttl 5` is `--ttl 5`, `--sort=true` is `--sort`, and flags may be behind arguments. What etcdctl
ignores is refused here: a flag that is unknown, wherever it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")
_FLAG = re.compile(r"--?(?P<name>[A-Za-z][\w-]*)(?:=(?P<value>.*))?", re.DOTALL)

# Durations.

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
# The pattern takes quadratic time to refuse a text, and no duration needs more.
_LENGTH_MAX = 64
_LONGEST_S = 2**63 / 10**9
"""What a duration of Go can hold: 292 years."""


def seconds(text: str) -> float:
    """Return a duration such as `2s`, `1m30s` or `500ms` in seconds.

    Raises:
        ValueError: it is none, or none that Go could hold.
    """
    if text == "0":
        return 0.0
    shown = repr(text if len(text) <= _LENGTH_MAX else f"{text[:_LENGTH_MAX]}...")
    if not text or len(text) > _LENGTH_MAX or _PART.sub("", text):
        raise ValueError(f"expected a duration such as 2s or 500ms, got {shown}")
    found = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if found >= _LONGEST_S:
        raise ValueError(f"expected at most 292 years, got {shown}")
    return found


class Seconds(click.FloatRange):
    """A number of seconds that a program can wait for: neither `nan` nor `inf`."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return found


# Numbers.


if TYPE_CHECKING:
    _Integer = click.ParamType[int]
else:
    _Integer = click.ParamType  # it takes no type before click 8.4


class Integer(_Integer):
    """A number of 64 bits: decimal, `0x10`, `0o17`, `017` or `0b1`."""

    name = "integer"
    _TEXT = re.compile(r"(?P<sign>[+-]?)(?:0(?P<octal>[0-7_]+)|(?P<other>[0-9][0-9A-Za-z_]{0,99}))")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        if isinstance(value, int):  # a default
            return value
        found = 0
        if (match := self._TEXT.fullmatch(value)) is None:
            self.fail(f"{value[:_LENGTH_MAX]!r} is no number", param, ctx)
        digits = match["other"]
        try:
            found = int(match["octal"], 8) if digits is None else int(digits, 0)
        except ValueError:
            self.fail(f"{value!r} is no number", param, ctx)
        found = -found if match["sign"] == "-" else found
        if not -(2**63) <= found < 2**63:
            self.fail(f"{value} has more than 64 bits", param, ctx)
        return found


INTEGER = Integer()

# Flags.


def _named(parameters: Sequence[click.Parameter]) -> Mapping[str, click.Option]:
    return {
        name.lstrip("-"): one
        for one in parameters
        if isinstance(one, click.Option)
        for name in one.opts
    }


def as_click(
    args: Sequence[str], parameters: Sequence[click.Parameter], texts: Sequence[str] = ()
) -> list[str]:
    """Return arguments as click reads them: the flags, then `--` and the rest.

    Args:
        args: the arguments.
        parameters: the flags that there are.
        texts: if given, the second argument may be any text that is no flag, or one of these.
    """
    options = _named(parameters)
    flags: list[str] = []
    found: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if arg == "--":
            found += rest
            break
        is_text = bool(texts) and len(found) == 1
        match = _FLAG.fullmatch(arg)
        option = options.get(match["name"]) if match else None
        if not arg.startswith("-") or arg == "-" or (is_text and (not option or arg in texts)):
            found.append(arg)
        elif match is None or option is None:
            flags.append(arg)  # click refuses it, or takes several short ones in one
        elif option.is_flag:
            flags += _switched(option, match["name"], match["value"])
        elif match["value"] is not None:
            flags += [_longest(option), match["value"]]
        elif rest:
            flags += [_longest(option), rest.pop(0)]
        else:
            return [*flags, _longest(option)]  # click says that its value is missing
    return [*flags, "--", *found] if found else flags


def _longest(option: click.Option) -> str:
    """Return the long form of a flag: click looks for words like a short one first, for 5 ms."""
    return max(option.opts, key=len)


def _switched(option: click.Option, name: str, value: str | None) -> list[str]:
    """Return a flag without value as click has it."""
    if value is None or value in _TRUE:
        return [_longest(option)]
    if value not in _FALSE:
        flag = f"-{name}" if len(name) == 1 else f"--{name}"
        raise click.BadOptionUsage(flag, f"Option '{flag}': expected true or false, got {value!r}")
    return []


def leading(args: Sequence[str], parameters: Sequence[click.Parameter]) -> list[str]:
    """Return arguments with the flags before the first of these as click reads them."""
    options = _named(parameters)
    end = 0
    while end < len(args) and args[end].startswith("-") and args[end] not in ("-", "--"):
        name, is_joined, _ = args[end].lstrip("-").partition("=")
        has_value = name in options and not options[name].is_flag
        end += 2 if has_value and not is_joined else 1
    return [*as_click(args[:end], parameters), *args[end:]]
