"""The configuration file: YAML, with the names of flags as keys, as etcd's own.

etcd keeps the TLS settings of clients and peers in two mappings of their own; both ways of writing
them are read. A list is the same as its members with commas between them; a key without a value is
as if it were not there. A key that is no flag's is refused: what it was to switch on might be
missed.
"""

from collections.abc import Mapping

import yaml

from kvd.config.flag import ConfigError, shown
from kvd.config.sources import BY_NAME, REQUESTS, Setting, Settings, hint

_NESTED = {"client-transport-security": "", "peer-transport-security": "peer-"}


def from_file(path: str, data: bytes) -> Settings:
    """Return the settings of a configuration file.

    Args:
        path: Its name, for messages.
        data: What is in it.

    Raises:
        ConfigError: It is no YAML, or not what a configuration file is.
    """
    try:
        return _settings(path, data)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is no YAML: {_reason(error)}") from None
    except ValueError as error:  # a day that is none, a number of thousands of digits
        raise ConfigError(f"{path}: {str(error).partition(';')[0]}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None


def _settings(path: str, data: bytes) -> Settings:
    given: Settings = {}
    # The safe loader makes plain values only; the others run what a file says.
    for key, value in _mapping(path, yaml.safe_load(data)).items():
        if key in _NESTED:
            for inner, text in _mapping(f"{path}: {key}", value).items():
                _add(given, f"{path}: {key}: {inner}", _NESTED[key] + inner, text)
        else:
            _add(given, f"{path}: {key}", key, value)
    return given


def _mapping(where: str, content: object) -> Mapping[str, object]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected lines of the form `flag: value`")
    return {str(key): value for key, value in content.items()}


def _add(given: Settings, where: str, name: str, value: object) -> None:
    if name not in BY_NAME or name in REQUESTS or name == "config-file":
        path, _, _ = where.partition(":")
        raise ConfigError(f"{path}: unknown key {shown(name)}; {hint(name)}")
    if value is not None:
        given[name] = Setting(_text(where, value), where)


def _text(where: str, value: object) -> str:
    """Return a value as a command line would say it."""
    if isinstance(value, list):
        return ",".join(_text(where, member) for member in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ConfigError(f"{where}: expected a text, a number, a truth value or a list of these")


def _reason(error: yaml.YAMLError) -> str:
    """Return in one line what PyYAML says in many."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).partition("\n")[0]
