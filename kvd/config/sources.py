"""Sources of settings: the command line, the environment, the table's defaults.

Later sources rule: default < configuration file (`kvd.config.file`) < `ETCD_*` < `KVD_*` < flag.
(etcd 3.4 ignores all flags and variables if there is a configuration file.)

The command line is as in etcd (Go's flag package): one dash or two, `--flag value` or
`--flag=value`; a switch is `--flag` or `--flag=true`; of a flag given twice the last one rules. The
variable of `--data-dir` is `ETCD_DATA_DIR` or `KVD_DATA_DIR`; an empty one counts as none.
"""

import difflib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvd.config.etcd_flags import IGNORED, REFUSED_FLAGS
from kvd.config.flag import ConfigError, Flag, shown
from kvd.config.flags import FLAGS

BY_NAME = {flag.name: flag for flag in (*FLAGS, *IGNORED, *REFUSED_FLAGS)}
_ALIASES = {"h": "help"}
# These ask for something else than a server: only a command line can.
REQUESTS = frozenset(("help", "version", "print-config"))

_PREFIXES = ("ETCD_", "KVD_")
# etcd reads it itself; it is about processors.
_NOT_SETTINGS = frozenset(("ETCD_UNSUPPORTED_ARCH",))


@dataclass(frozen=True, slots=True)
class Setting:
    """A text for a flag.

    Attributes:
        text: The value as it was written.
        where: What a message calls the place: `--name`, `ETCD_NAME`, `/etc/kvd.yml: name`.
        is_default: Whether it is the default of the table.
    """

    text: str
    where: str
    is_default: bool = False


Settings = dict[str, Setting]
"""The settings of flags, by name."""

DEFAULTS: Settings = {
    flag.name: Setting(flag.default, f"--{flag.name}", is_default=True) for flag in BY_NAME.values()
}


def from_command_line(argv: Sequence[str]) -> Settings:
    """Take a command line apart, without the program's own name.

    Raises:
        ConfigError: A word is no flag, a flag is unknown or lacks its value.
    """
    given: Settings = {}
    words = deque(argv)
    while words:
        word = words.popleft()
        name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
        if not word.startswith("-") or not name or name.startswith("-"):
            raise ConfigError(f"{shown(word)} is no flag; see kvd --help")
        flag = BY_NAME.get(_ALIASES.get(name, name))
        if flag is None:
            raise ConfigError(f"unknown flag {shown('--' + name)}; {hint(name, '--')}")
        if not equals:
            text = _value_after(flag, words) if flag.value else "true"
            if flag.may_have_value and words and not words[0].startswith("-"):
                text = words.popleft()
        if flag.repeats and flag.name in given:
            text = f"{given[flag.name].text},{text}"
        given[flag.name] = Setting(text, f"--{flag.name}")
    return given


def from_environment(environ: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """Return the settings among the variables, and the names of those that look like settings."""
    given: Settings = {}
    unknown: list[str] = []
    for prefix in _PREFIXES:
        for variable, text in environ.items():
            if not variable.startswith(prefix) or not text or variable in _NOT_SETTINGS:
                continue
            name = variable.removeprefix(prefix).lower().replace("_", "-")
            if name in BY_NAME and name not in REQUESTS and variable == variable.upper():
                given[name] = Setting(text, variable)
            else:
                unknown.append(variable)
    return given, sorted(unknown)


def hint(name: str, dashes: str = "") -> str:
    """Return the advice for a name that is no flag's."""
    near = difflib.get_close_matches(name, BY_NAME, n=1)
    return f"did you mean {dashes}{near[0]}?" if near else "see kvd --help"


def _value_after(flag: Flag, words: deque[str]) -> str:
    word = words.popleft() if words else None
    if word is None:
        raise ConfigError(f"--{flag.name} needs a value: --{flag.name} {flag.value}")
    # `--data-dir --rebuild-index` is a value forgotten far more likely than a directory's name.
    if word.startswith("-") and word.lstrip("-").partition("=")[0] in BY_NAME:
        raise ConfigError(
            f"--{flag.name} needs a value before {word} (or write --{flag.name}={word})"
        )
    return word
