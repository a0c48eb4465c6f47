"""Passwords: hashed and checked on threads of their own, and not more often than needed.

bcrypt takes a twentieth of a second on purpose. So a password that was right is remembered until it
has not been used for a minute, as a digest of what was sent and of the hash that it was right for,
under a key that only this process has: a new password of the user makes it worthless. Equal checks
at the same time are one. An unknown user takes as long as a known one.

Guesses must not keep out the users whose passwords are right, so checks wait in a queue whose turns
are shared out (kvd/fairqueue.py), in three lanes:

    0  what was right before, against the same hash: a user who returns after more than a minute;
       also the hashes of new passwords, which administrators ask for
    1  names for which a password was right lately, shared out by name, then by address
    2  all others, shared out by address, then by name

Of a password the first 72 bytes count, as in etcd 3.4: bcrypt takes no more.
"""

from __future__ import annotations

import asyncio
import binascii
import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

import bcrypt

from kvd.fairqueue import FairQueue, Share

_T = TypeVar("_T")
_V = TypeVar("_V")
_Work = tuple[Callable[[], Any], "asyncio.Future[Any]"]

_FIRST, _KNOWN_NAMES, _OTHERS = range(3)

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
    """The passwords that were right lately, and the queue of those that are to be checked."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._key = secrets.token_bytes(32)
        # Until when what was right counts without a check, by digest; and the names of their users
        # as digests. Those longest unused come first.
        self._right: OrderedDict[bytes, float] = OrderedDict()
        self._names: OrderedDict[bytes, None] = OrderedDict()
        self._checks: dict[bytes, asyncio.Task[bool]] = {}
        self._queue: FairQueue[_Work] = FairQueue(lanes=3, size_max=_WAITING_MAX)
        # One processor is the loop's, however many guess at passwords.
        self._idle = min(_THREADS_MAX, max(1, len(os.sched_getaffinity(0)) - 1))
        self._pool = ThreadPoolExecutor(self._idle, thread_name_prefix="kvd-password")
        self._closed = False

    def are_known(self, given: Basic, secret: bytes) -> bool:
        """Return whether these were right lately against this hash; they then stay so."""
        digest = self._digest(given, secret)
        until_s = self._right.get(digest)
        if until_s is None or until_s <= self._loop.time():
            return False
        self._remember(digest)
        return True

    async def are_right(self, given: Basic, secret: bytes | None, address: str = "") -> bool:
        """Return whether a password is the one of a hash; None is the hash of an unknown user.

        Args:
            given: name and password.
            secret: the hash.
            address: who asks: addresses share the checks.

        Raises:
            Busy: too many are being checked.
        """
        digest = self._digest(given, secret or _NOBODY)
        check = self._checks.get(digest)
        if check is None:
            share = self._share(given.name, digest, address)
            check = self._loop.create_task(self._check(digest, given, secret, share))
            self._checks[digest] = check
            check.add_done_callback(partial(self._checked, digest))
        return await asyncio.shield(check)

    async def hash(self, password: str) -> bytes:
        """Return the hash of a new password.

        Raises:
            Busy: too many are being hashed.
        """
        salt = bcrypt.gensalt(_COST, prefix=b"2a")
        work = partial(bcrypt.hashpw, password.encode()[:_PASSWORD_BYTES_MAX], salt)
        return await self._in_thread(work, Share(_FIRST, b"", b""))

    def close(self) -> None:
        """Check nothing any more."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _share(self, name: str, digest: bytes, address: str) -> Share:
        hashed = _name_digest(name)
        if digest in self._right:
            return Share(_FIRST, hashed, b"")
        if hashed in self._names:
            return Share(_KNOWN_NAMES, hashed, address.encode())
        return Share(_OTHERS, address.encode(), hashed)

    async def _check(self, digest: bytes, given: Basic, secret: bytes | None, share: Share) -> bool:
        password = given.password[:_PASSWORD_BYTES_MAX]
        is_right = await self._in_thread(partial(_matches, password, secret or _NOBODY), share)
        if not is_right or secret is None:
            return False
        self._remember(digest)
        _use(self._names, _name_digest(given.name), None)
        return True

    def _remember(self, digest: bytes) -> None:
        _use(self._right, digest, self._loop.time() + _KNOWN_S)

    def _checked(self, digest: bytes, check: asyncio.Task[bool]) -> None:
        del self._checks[digest]
        if not check.cancelled():
            check.exception()  # it is retrieved, even if no request waits for it any more

    async def _in_thread(self, work: Callable[[], _T], share: Share) -> _T:
        outcome: asyncio.Future[_T] = self._loop.create_future()
        refused = self._queue.put(share, (work, outcome))
        if refused is not None:
            _fail(refused[1], Busy())
        self._start()
        return await outcome

    def _start(self) -> None:
        """Give work to the threads that have none."""
        while self._idle and len(self._queue) and not self._closed:
            work, outcome = self._queue.pop()
            if outcome.done():
                continue  # it was cancelled
            self._idle -= 1
            done = self._loop.run_in_executor(self._pool, work)
            done.add_done_callback(partial(self._ended, outcome))

    def _ended(self, outcome: asyncio.Future[Any], done: asyncio.Future[Any]) -> None:
        self._idle += 1
        if done.cancelled():
            outcome.cancel()
        elif (error := done.exception()) is not None:
            _fail(outcome, error)
        elif not outcome.done():
            outcome.set_result(done.result())
        self._start()

    def _digest(self, given: Basic, secret: bytes) -> bytes:
        name = given.name.encode("utf-8", "surrogateescape")
        # The length of the name keeps the three apart; a hash has no zero byte.
        text = b"%d:%b%b\0%b" % (len(name), name, secret, given.password)
        return blake2b(text, key=self._key, digest_size=32).digest()


def _use(used: OrderedDict[bytes, _V], key: bytes, value: _V) -> None:
    """Note that something was used just now; what was not used for longest gives way."""
    used[key] = value
    used.move_to_end(key)
    if len(used) > _KNOWN_MAX:
        used.popitem(last=False)


def _fail(outcome: asyncio.Future[Any], error: BaseException) -> None:
    if not outcome.done():
        outcome.set_exception(error)


def _name_digest(name: str) -> bytes:
    return blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _matches(password: bytes, secret: bytes) -> bool:
    try:
        return bcrypt.checkpw(password, secret)
    except ValueError:  # that is no hash
        return False
