"""Passwords: hashed and checked beside the event loop, and not more often than needed.

bcrypt takes a twentieth of a second on purpose, so it runs in a few threads of its own; and who has
proved a password need not prove it again for a minute. What is remembered of it is a digest of what
was sent and of the hash it was right for, under a key that only this process has. Whoever sends the
same while it is being checked waits for the same check. An unknown user takes as long as a known
one.

Of a password the first 72 bytes count, as in etcd 3.4: bcrypt takes no more.
"""

from __future__ import annotations

import asyncio
import binascii
import os
import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from typing import NamedTuple, TypeVar

import bcrypt

_T = TypeVar("_T")

_BASIC = re.compile(
    "basic ((?:[A-Z0-9+/]{4})*(?:[A-Z0-9+/]{2}==|[A-Z0-9+/]{3}=)?)", re.ASCII | re.IGNORECASE
)
AUTHORIZATION_BYTES_MAX = 4096
"""A longer header is nobody's: its name and password would wait in memory to be checked."""
_COST = 10
"""etcd's: `bcrypt.DefaultCost` of Go."""
_PASSWORD_BYTES_MAX = 72
_THREADS_MAX = 4
# So many may wait for a thread, a minute's work for one; more are turned away.
_WAITING_MAX = 1000
_KNOWN_MAX = 10_000
_KNOWN_S = 60.0
# The hash of a password that nobody knows, in place of an unknown user's.
_NOBODY = b"$2a$10$7PzmCb9Gw.X7RWBQP/ipXemg2ncPYE.WsYjnwEJcq//7znuaWoK7i"


class Busy(Exception):
    """Too many passwords wait to be hashed or checked."""


class Basic(NamedTuple):
    """The name and the password in an Authorization header of the kind Basic (RFC 7617)."""

    name: str
    password: bytes


def read_basic(authorization: str) -> Basic | None:
    """Return what a header says, or None where it is of no such kind."""
    match = _BASIC.fullmatch(authorization)
    if match is None or len(authorization) > AUTHORIZATION_BYTES_MAX:
        return None
    name, colon, password = binascii.a2b_base64(match[1]).partition(b":")
    return Basic(name.decode("utf-8", "surrogateescape"), password) if colon else None


class Credentials:
    """Who has proved lately who they are, and the threads in which others do."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, float] = {}
        self._checks: dict[bytes, asyncio.Task[bool]] = {}
        self._waiting = 0
        # One processor is the loop's, however many guess at passwords.
        threads = min(_THREADS_MAX, max(1, len(os.sched_getaffinity(0)) - 1))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kvd-password")

    def are_known(self, given: Basic, secret: bytes) -> bool:
        """Return whether these were checked lately against this hash, and were right."""
        until_s = self._known.get(self._digest(given, secret))
        return until_s is not None and until_s > self._loop.time()

    async def are_right(self, given: Basic, secret: bytes | None) -> bool:
        """Return whether a password is the one of a hash; None is the hash of an unknown user.

        Raises:
            Busy: too many are being checked.
        """
        digest = self._digest(given, secret or _NOBODY)
        check = self._checks.get(digest)
        if check is None:
            check = self._loop.create_task(self._check(digest, given.password, secret))
            self._checks[digest] = check
            check.add_done_callback(partial(self._checked, digest))
        return await asyncio.shield(check)

    async def hash(self, password: str) -> bytes:
        """Return the hash of a new password.

        Raises:
            Busy: too many are being hashed.
        """
        salt = bcrypt.gensalt(_COST, prefix=b"2a")
        return await self._in_thread(bcrypt.hashpw, password.encode()[:_PASSWORD_BYTES_MAX], salt)

    def forget(self) -> None:
        """Forget everybody: users have changed."""
        self._known.clear()

    def close(self) -> None:
        """Check nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _check(self, digest: bytes, password: bytes, secret: bytes | None) -> bool:
        is_right = await self._in_thread(_matches, password, secret or _NOBODY)
        if not is_right or secret is None:
            return False
        if len(self._known) >= _KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[digest] = self._loop.time() + _KNOWN_S
        return True

    def _checked(self, digest: bytes, check: asyncio.Task[bool]) -> None:
        del self._checks[digest]
        if not check.cancelled():
            check.exception()  # whoever waits has it; there may be nobody any more

    async def _in_thread(self, work: Callable[[bytes, bytes], _T], one: bytes, other: bytes) -> _T:
        if self._waiting >= _WAITING_MAX:
            raise Busy
        self._waiting += 1
        try:
            return await self._loop.run_in_executor(self._pool, work, one, other)
        finally:
            self._waiting -= 1

    def _digest(self, given: Basic, secret: bytes) -> bytes:
        name = given.name.encode("utf-8", "surrogateescape")
        # The length of the name keeps the three apart; a hash has no zero byte.
        text = b"%d:%b%b\0%b" % (len(name), name, secret, given.password)
        return blake2b(text, key=self._key, digest_size=32).digest()


def _matches(password: bytes, secret: bytes) -> bool:
    try:
        return bcrypt.checkpw(password[:_PASSWORD_BYTES_MAX], secret)
    except ValueError:  # that is no hash
        return False
