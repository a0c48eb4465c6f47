"""Checks of passwords that cost little and end when the test says so."""

import asyncio
import threading

import bcrypt

from kvd.handlers.passwords import Basic
from tests.support.committing import PATIENCE_S, turns

AL = Basic("al", b"secret")
CHEAP = bcrypt.hashpw(b"never said", bcrypt.gensalt(4, prefix=b"2a"))


class Checks:
    """Counts the checks, and holds them until they may go on."""

    def __init__(self, monkeypatch):
        self.passwords = []
        self.costs = set()
        self.threads = set()
        self.go_on = threading.Event()
        self.go_on.set()
        real = bcrypt.checkpw

        def check(password, secret):
            self.passwords.append(password)
            self.costs.add(secret[:7])
            self.threads.add(threading.get_ident())
            assert self.go_on.wait(PATIENCE_S)
            return real(password, secret)

        monkeypatch.setattr(bcrypt, "checkpw", check)


async def order_of(held, checks, queued):
    """Queue checks behind one that is held; the passwords in the order of their checks."""
    checks.go_on.clear()
    waiting = []
    for given, secret, address in [(Basic("first", b"first"), CHEAP, "x"), *queued]:
        waiting.append(asyncio.create_task(held.are_right(given, secret, address)))
        await turns()
    before = len(checks.passwords)
    checks.go_on.set()
    await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_S)
    return [password for password in checks.passwords[before:] if password != b"first"]
