"""Profiles: named sets of settings in `$XDG_CONFIG_HOME/kvdctl/config.toml`."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvd.ctl.failures import failure

TEXTS = ("ca-file", "cert-file", "key-file", "username", "password", "password-file")
SETTINGS = (*TEXTS, "timeout", "total-timeout", "output", "color")
LISTS = ("endpoints", "password-command")
PATHS = ("ca-file", "cert-file", "key-file", "password-file")


def load(path: str, name: str | None) -> Mapping[str, Any]:
    """Return a profile: the named one, or the default of the file; empty where there is none.

    Raises:
        Failure: there is no profile of that name, or the file cannot be used.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        if name is not None:
            raise failure(f"no profile {name!r}: there is no {file}") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise failure(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    import tomllib  # noqa: PLC0415 -- most users have no profiles

    try:
        whole = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers may be too long, and lists too deep
        raise failure(f"{file}: {error}") from None
    return _checked(whole, name, file)


def _checked(whole: Mapping[str, Any], name: str | None, file: Path) -> Mapping[str, Any]:
    if unknown := whole.keys() - {"default", "profiles"}:
        raise failure(f"{file}: unknown entry {min(unknown)!r}")
    name = name if name is not None else whole.get("default")
    if name is None:
        return {}
    if not isinstance(name, str):
        raise failure(f"{file}: default: expected a string")
    profiles = whole.get("profiles", {})
    profile = profiles.get(name) if isinstance(profiles, dict) else None
    if not isinstance(profile, dict):
        raise failure(f"no profile {name!r} in {file}")
    for key, value in profile.items():
        _check(key, value, f"{file}: profile {name!r}: {key}")
    if "password" in profile and stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise failure(f"{file}: it holds a password and other users can read it: chmod 600 it")
    return {
        key: os.path.expanduser(value) if key in PATHS else value  # noqa: PTH111 -- a text stays one
        for key, value in profile.items()
    }


def _check(key: str, value: object, where: str) -> None:
    """Raise Failure unless a setting may have a value."""
    if key not in SETTINGS and key not in LISTS:
        raise failure(f"{where}: unknown setting")
    texts = value if key in LISTS and isinstance(value, list) else [value]
    if key in LISTS and (texts is not value or not texts):
        raise failure(f"{where}: expected a list of strings")
    for text in texts:
        if not isinstance(text, str):
            raise failure(f"{where}: expected a {'list of strings' if key in LISTS else 'string'}")
        if "\0" in text:
            raise failure(f"{where}: it has a character NUL")
