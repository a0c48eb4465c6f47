"""Texts of `--help`, `--version` and `--print-config`."""

import math
import textwrap

import yaml

from kvd import __version__
from kvd.config.etcd_flags import IGNORED, NO_EFFECT, REFUSED, REFUSED_FLAGS
from kvd.config.flag import GROUPS, OLD, Flag
from kvd.config.flags import FLAGS
from kvd.config.replicas.flags import PEER_NAMES
from kvd.config.sources import REQUESTS, Settings
from kvd.lines import printable

_WIDTH = 96
_INDENT = " " * 34
_VALUES_WIDTH = 50


def version_text() -> str:
    """Return the text of `--version`."""
    return f"kvd {__version__}\n"


def help_text() -> str:
    """Return the text of `--help`."""
    lines = [
        "usage: kvd [flags]",
        "",
        "A durable configuration store that serves the etcd v2 HTTP API.",
        "Flags are etcd's: one dash or two, `--flag value` or `--flag=value`. Each can also be a",
        "variable (--data-dir: KVD_DATA_DIR or ETCD_DATA_DIR) or a line of a YAML file",
        "(data-dir: /var/lib/kvd). A flag rules over KVD_*, that over ETCD_*, that over the file.",
        "`kvdctl help` prints the manual: settings, limits, operations and more.",
    ]
    for group in GROUPS:
        lines += ["", f"{group}:"]
        for flag in FLAGS:
            if flag.group == group:
                lines += _help_lines(flag)
    for heading, flags in ((NO_EFFECT, IGNORED), (REFUSED, REFUSED_FLAGS)):
        names = ", ".join(f"--{flag.name}" for flag in sorted(flags, key=lambda f: f.name))
        lines += ["", f"{heading}:"]
        lines += textwrap.wrap(
            names, _WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )
    return "\n".join(lines) + "\n"


def settings_text(settings: Settings) -> str:
    """Return a configuration file that names the source of each value, for `--print-config`."""
    lines: list[str] = []
    left_out = REQUESTS | {"config-file"}
    if not settings["replicate"].text:
        left_out |= PEER_NAMES  # a server alone would warn of them
    for flag in FLAGS:
        setting = settings[flag.name]
        if flag.name in left_out or flag.group == OLD:
            continue
        line = f"{flag.name}: {_yaml(setting.text)}".ljust(_VALUES_WIDTH)
        where = "default" if setting.is_default else printable(setting.where)
        lines.append(f"{line} # {where}")
    return "\n".join(lines) + "\n"


def _yaml(text: str) -> str:
    """Return a text as YAML, on one line; nothing for none."""
    value: object = int(text) if text.isdigit() and str(int(text)) == text else text
    value = {"": None, "true": True, "false": False}.get(text, value)
    if value is None:
        return ""
    return yaml.safe_dump(value, width=math.inf, allow_unicode=True).removesuffix("...\n").rstrip()


def _help_lines(flag: Flag) -> list[str]:
    head = f"  --{flag.name} {flag.value}".rstrip()
    default = f" (default: {flag.default})" if flag.value and flag.default else ""
    body = textwrap.wrap(
        flag.help + default,
        _WIDTH,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT,
        break_on_hyphens=False,
    )
    if len(head) + 2 > len(_INDENT):
        return [head, *body]
    return [head.ljust(len(_INDENT)) + body[0].lstrip(), *body[1:]]
