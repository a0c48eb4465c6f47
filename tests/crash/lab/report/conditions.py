"""Under what conditions an experiment ran: whatever a reader needs to repeat it."""

import datetime
import os
import platform
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kvd
from tests.support.server import ROOT

Conditions = dict[str, Any]


def conditions(directory: Path) -> Conditions:
    """Return the conditions of experiments that work in a directory."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kvd": {"version": kvd.__version__, **_commit()},
        "machine": {
            "architecture": platform.machine(),
            "processor": _field(Path("/proc/cpuinfo"), "model name"),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        },
        "system": {
            "name": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
            "kernel": f"{platform.system()} {platform.release()}",
        },
        "file_system": _file_system(directory),
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "optimized": "--enable-optimizations"
            in (sysconfig.get_config_var("CONFIG_ARGS") or ""),
            "loop": "uvloop" if find_spec("uvloop") else "asyncio",
        },
    }


def _commit() -> dict[str, Any]:
    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "--short=12", "HEAD"),
            "changed": bool(git("status", "--porcelain")),
        }
    except FileNotFoundError:
        return {"commit": "", "changed": False}


def _field(path: Path, name: str) -> str:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _file_system(directory: Path) -> dict[str, str]:
    """Return the kind and the options of the file system that a directory is on."""
    best, found = "", {"type": "", "options": ""}
    place = str(directory.resolve())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount, options = before.split()[4:6]
        kind, _, more = after.split()[:3]
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best = mount
            every = dict.fromkeys([*options.split(","), *more.split(",")])
            # Options that name a place of this machine tell a reader nothing.
            kept = [option for option in every if "/" not in option]
            found = {"type": kind, "options": ",".join(kept)}
    return found
