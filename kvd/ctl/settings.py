"""Settings of a call.

A flag comes first, then `KVDCTL_*`, then `ETCDCTL_*`, then the profile, then a default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from kvd.ctl import goflags
from kvd.ctl.failures import failure

DEFAULTS = {
    "endpoints": "http://127.0.0.1:2379",
    "timeout": "2s",
    "total_timeout": "5s",
    "output": "simple",
    "color": "auto",
}
_OF_ETCDCTL = {
    "endpoints": ("ENDPOINTS", "ENDPOINT", "PEERS"),
    "ca_file": ("CA_FILE",),
    "cert_file": ("CERT_FILE",),
    "key_file": ("KEY_FILE",),
    "username": ("USERNAME",),
}


class Settings:
    """The settings of one call; each is looked up when it is used.

    Attributes:
        given: the flags, by their names with underscores.
    """

    def __init__(self, given: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
        self.given = given
        self._environ = environ

    @cached_property
    def profile(self) -> Mapping[str, Any]:
        """The profile that applies; empty where there is none."""
        name = self.given.get("profile") or self._environ.get("KVDCTL_PROFILE") or None
        if name is None and not os.path.exists(_file(self._environ)):  # noqa: PTH110
            return {}
        from kvd.ctl import profiles  # noqa: PLC0415 -- pathlib takes as long as a request

        return profiles.load(_file(self._environ), name)

    def explicit(self, name: str) -> str | None:
        """Return a flag or variable; nothing, whatever the variables, if the flag is None."""
        if name in self.given:
            flag = self.given[name]
            return None if flag is None else str(flag)
        variables = (f"KVDCTL_{name.upper()}", *self._of_etcdctl(name))
        return next((text for one in variables if (text := self._environ.get(one))), None)

    @staticmethod
    def _of_etcdctl(name: str) -> list[str]:
        return [f"ETCDCTL_{one}" for one in _OF_ETCDCTL.get(name, ())]

    def text(self, name: str) -> str | None:
        """Return a setting, None where there is none."""
        found = self.explicit(name)
        if found is None:
            of_profile = self.profile.get(name.replace("_", "-"))
            found = DEFAULTS.get(name) if of_profile is None else of_profile
        return found

    def is_on(self, name: str) -> bool:
        """Return whether a flag without value is given, or its variable is 1 or true."""
        return bool(self.given.get(name)) or (
            self._environ.get(f"KVDCTL_{name.upper()}", "").lower() in ("1", "true")
        )

    @property
    def endpoints(self) -> list[str]:
        """The URLs of the server, each with a scheme."""
        found = self.explicit("endpoints")
        if found is None:
            urls = self.profile.get("endpoints") or [DEFAULTS["endpoints"]]
        else:
            urls = found.split(",")
        urls = [url.strip() for url in urls if url.strip()]
        if not urls:
            raise failure("--endpoints: expected a URL")
        return [url if "://" in url else f"http://{url}" for url in urls]

    def seconds(self, name: str) -> float:
        """Return a duration in seconds; 0 is as long as it takes."""
        try:
            found = goflags.seconds(self.text(name) or "")
        except ValueError as error:
            raise failure(f"--{name.replace('_', '-')}: {error}") from None
        return found or float("inf")

    @property
    def output(self) -> str:
        """The format of the output."""
        return self.text("output") or ""


def _file(environ: Mapping[str, str]) -> str:
    """Return where the profiles are, if there are any."""
    home = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '')}/.config"
    return f"{home}/kvdctl/config.toml"
