"""The user of a call: its name, and its password from the first source that has one.

`-u NAME:PASSWORD`, `--password-file`, the profile (of its own user alone), the terminal.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from kvd.ctl.failures import failure
from kvd.ctl.settings import Settings

_COMMAND_S = 60


def credentials(settings: Settings) -> tuple[str | None, str | None]:
    """Return name and password; None for a guest.

    Raises:
        Failure: there is no password.
    """
    name, password = _credentials(settings)
    if any("\udc80" <= c <= "\udcff" for c in f"{name}{password}"):
        raise failure("-u: name and password are UTF-8")
    return name, password


def _credentials(settings: Settings) -> tuple[str | None, str | None]:
    given = settings.text("username")
    if not given:
        return None, None
    name, colon, password = given.partition(":")
    if colon:
        return name, password
    if (file := settings.explicit("password_file")) is not None:
        return name, _from_file(file)
    is_quiet = settings.given.get("never_ask")  # a command may ask, too
    if is_quiet and "password-command" in settings.profile:
        raise failure(f"-u {name} needs a password")
    found = of_profile(settings.profile, name)
    if is_quiet and found is None:
        raise failure(f"-u {name} needs a password")
    return name, found or ask(f"-u {name}", "Password: ")


def of_profile(profile: Mapping[str, Any], name: str) -> str | None:
    """Return the password of a profile, if it is this user's."""
    if profile.get("username") != name:
        return None
    if "password-file" in profile:
        return _from_file(profile["password-file"])
    if "password-command" in profile:
        return _from_command(profile["password-command"])
    return profile.get("password")


def _from_file(file: str) -> str:
    if file == "-":
        file = "/dev/stdin"
    try:
        with open(file, encoding="utf-8") as opened:  # noqa: PTH123 -- pathlib is slow to load
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise failure(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    return text.partition("\n")[0].removesuffix("\r")


def _from_command(command: list[str]) -> str:
    import subprocess  # noqa: PLC0415 -- few profiles have one

    try:
        ended = subprocess.run(  # noqa: S603 -- the user's own file names it
            command, stdout=subprocess.PIPE, timeout=_COMMAND_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or "it does not end"
        raise failure(f"password-command {command[0]}: {reason}") from None
    if ended.returncode:
        raise failure(f"password-command {command[0]} ended with status {ended.returncode}")
    text = ended.stdout.decode("utf-8", "replace")
    return text.partition("\n")[0].removesuffix("\r")


def ask(user: str, prompt: str) -> str:
    """Read a password from the terminal of the process, without echo.

    Raises:
        Failure: there is no terminal.
    """
    import getpass  # noqa: PLC0415 -- most calls have none, and termios is slow to load

    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        raise failure(f"{user} needs a password, and there is no terminal to ask on") from None
    os.close(terminal)
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise failure(f"{user} needs a password") from None
