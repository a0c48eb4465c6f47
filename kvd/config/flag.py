"""A flag, as the tables list it, and the error for a setting that cannot be used."""

from dataclasses import dataclass

EXIT_USAGE = 64  # EX_USAGE of sysexits.h


class ConfigError(Exception):
    """An invalid setting; the text is one line for the operator."""

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
        may_have_value: A switch whose name has a value in etcd: a word behind it is taken for that,
            and refused with a reason.
    """

    name: str
    default: str
    value: str
    help: str
    group: str
    repeats: bool = False
    may_have_value: bool = False


MEMBER, REPLICAS, STORAGE, SECURITY = "Member", "Replicas", "Storage", "Security"
BROWSERS = "Browsers"
EXTRAS, LIMITS, LOGGING, OTHER = "Extras", "Limits", "Logging", "Other"
OLD = "Old names"
GROUPS = (MEMBER, REPLICAS, STORAGE, SECURITY, BROWSERS, EXTRAS, LIMITS, LOGGING, OTHER, OLD)


def shown(text: str) -> str:
    """A text in quotes for a message of one line, whatever is in it."""
    return f'"{text}"' if text.isprintable() else ascii(text)
