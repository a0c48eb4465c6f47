"""Readers of single settings: a truth value, a number, seconds, a list.

Each reader takes the settings and the name of the flag, and raises `ConfigError` with what was
expected, what was found, and where.
"""

import math

from kvd.config.flag import ConfigError, shown
from kvd.config.sources import Settings

INTEGER_MAX = 2**63 - 1

# Go's strconv.ParseBool.
_BOOLEANS = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)


def refusal(settings: Settings, name: str, expected: str) -> ConfigError:
    """Return the error for a setting that is not what is expected."""
    setting = settings[name]
    return ConfigError(f"{setting.where}: expected {expected}, found {shown(setting.text)}")


def boolean(settings: Settings, name: str) -> bool:
    """Return a truth value, in any of Go's words for it."""
    try:
        return _BOOLEANS[settings[name].text]
    except KeyError:
        raise refusal(settings, name, "true or false") from None


def integer(settings: Settings, name: str, *, lowest: int = 1, highest: int = INTEGER_MAX) -> int:
    """Return a whole number within bounds."""
    text = settings[name].text
    # int() alone would also take signs, blanks, underscores and digits of every script.
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not lowest <= value <= highest:
        bounds = f"{lowest} or more" if highest == INTEGER_MAX else f"{lowest} to {highest}"
        raise refusal(settings, name, f"a whole number, {bounds}")
    return value


def integer_or_none(settings: Settings, name: str) -> int | None:
    """Return a whole number, 1 or more, or None for an empty text."""
    return integer(settings, name) if settings[name].text else None


def seconds(settings: Settings, name: str) -> float:
    """Return a time in seconds, above 0."""
    try:
        value = float(settings[name].text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise refusal(settings, name, "seconds above 0")
    return value


def word(settings: Settings, name: str, *choices: str) -> str:
    """Return one of a few words."""
    text = settings[name].text
    if text not in choices:
        raise refusal(settings, name, f"one of {', '.join(choices)}")
    return text


def comma_list(settings: Settings, name: str, kind: str) -> list[str]:
    """Return the members of a comma list, without the blanks around them; none for an empty text.

    Args:
        settings: The settings.
        name: The flag.
        kind: What a member is, with its article, for the message.
    """
    found = [text.strip() for text in settings[name].text.split(",")]
    if found == [""]:
        return []
    if "" in found:
        raise refusal(settings, name, f"{kind} beside each comma")
    return found
