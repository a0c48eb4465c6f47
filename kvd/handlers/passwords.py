"""Passwords: hashed and checked on threads of their own, and not more often than needed.

bcrypt takes a twentieth of a second on purpose. So a password that was right is remembered until it
has not been used for a minute, as a digest of what was sent and of the hash that it was right for,
under a key that only this process has: a new password of the user makes it worthless. Equal checks
at the same time are one. An unknown user takes as long as a known one, unless others wait.

Guesses must not keep out the users whose passwords are right, so checks wait in a queue whose turns
are shared out (kvd/limits/fair_queue.py), in lanes:

    0  what was right before, against the same hash: a user that returns after more than a minute;
       also the hashes of new passwords, which administrators request
    1  names for which a password was right lately
    2  other names of users, on connections where no password was wrong yet
    3  the same on other connections
    4  names of no user, shared out by network, then by name; 1 to 3 are so by name, then by network

After a restart lane 1 is empty, and guesses differ from users only in being wrong: the next guess
of a client comes to a later lane, or its network is not a new one any more. Of one name and one
network the newest check runs, which is as likely a user's as a guess; a client that tries again is
the newest again. A refusal is delayed by a second, or its client would come back at once and fill
the queue. A check for which no client waits any more is skipped.

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

from kvd.limits.fair_queue import FairQueue, Share

_T = TypeVar("_T")
_K = TypeVar("_K")
_V = TypeVar("_V")

_FIRST, _KNOWN_NAMES, _OTHERS, _, _NO_USERS = range(5)

_BASIC = re.compile(
    "basic ((?:[A-Z0-9+/]{4})*(?:[A-Z0-9+/]{2}==|[A-Z0-9+/]{3}=)?)", re.ASCII | re.IGNORECASE
)
AUTHORIZATION_BYTES_MAX = 4096
"""A longer header is not accepted: its name and password would wait in memory to be checked."""
_COST = 10
"""etcd's: `bcrypt.DefaultCost` of Go."""
_PASSWORD_BYTES_MAX = 72
_THREADS_MAX = 4
# Limit of pending checks; more are refused. A thread does not get through as many in the time that
# one may wait: a refusal here would reject a password that was never checked.
_WAITING_MAX = 4000
_WAIT_S = 30.0
# How long a refusal is delayed.
_REFUSED_S = 1.0
# So many are passed over at once that are not to be checked any more.
_PASSED_OVER_MAX = 64
_KNOWN_MAX = 10_000
_KNOWN_S = 60.0
# How long it is remembered that a password from a network was wrong, and of so many networks.
_WRONG_S = 60.0
_WRONG_MAX = 10_000
# Hash of an unknown password, in place of an unknown user's.
_NO_HASH = b"$2a$10$7PzmCb9Gw.X7RWBQP/ipXemg2ncPYE.WsYjnwEJcq//7znuaWoK7i"


class Busy(Exception):
    """Too many passwords wait to be hashed or checked."""


class Basic(NamedTuple):
    """The name and the password in an Authorization header of the kind Basic (RFC 7617)."""

    name: str
    password: bytes


def read_basic(authorization: str) -> Basic | None:
    """Return what a header says, or None where it is of no such kind."""
    if len(authorization) > AUTHORIZATION_BYTES_MAX:
        return None
    match = _BASIC.fullmatch(authorization)
    if match is None:
        return None
    name, colon, password = binascii.a2b_base64(match[1]).partition(b":")
    return Basic(name.decode("utf-8", "surrogateescape"), password) if colon else None


class _Work:
    """Work for a thread, and its waiting callers; it may be queued more than once.

    Attributes:
        askers: Callers; each returns whether its client has gone.
        until_s: When it is given up.
        places: How often it is queued.
    """

    __slots__ = ("askers", "do", "is_begun", "outcome", "places", "until_s")

    def __init__(self, do: Callable[[], Any], outcome: asyncio.Future[Any]) -> None:
        self.do = do
        self.outcome = outcome
        self.askers: list[Callable[[], bool]] = []
        self.until_s = 0.0
        self.places = 0
        self.is_begun = False

    def is_wanted(self, now_s: float) -> bool:
        return now_s <= self.until_s and not all(has_gone() for has_gone in self.askers)


class Credentials:
    """Cache of passwords that were right lately, and queue of pending checks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._key = secrets.token_bytes(32)
        # Until when what was right counts without a check, by digest; and the names of their users
        # as digests. Those longest unused come first.
        self._right: OrderedDict[bytes, float] = OrderedDict()
        self._names: OrderedDict[bytes, None] = OrderedDict()
        self._wrong: OrderedDict[str, float] = OrderedDict()
        self._checks: dict[bytes, tuple[_Work, asyncio.Task[bool]]] = {}
        self._queue: FairQueue[_Work] = FairQueue(lanes=5, size_max=_WAITING_MAX, favours_new=True)
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

    async def are_right(
        self,
        given: Basic,
        secret: bytes | None,
        network: str = "",
        has_gone: Callable[[], bool] = lambda: False,
        *,
        was_wrong: bool = False,
    ) -> bool:
        """Return whether a password is the one of a hash; None is the hash of an unknown user.

        Args:
            given: name and password.
            secret: the hash.
            network: where it comes from: networks share the checks.
            has_gone: returns whether the client has gone that waits for the answer.
            was_wrong: whether a password on the same connection was.

        Raises:
            Busy: too many are being checked.
        """
        digest = self._digest(given, secret or _NO_HASH)
        check = self._checks.get(digest)
        if check is None:
            password = given.password[:_PASSWORD_BYTES_MAX]
            work = self._work(partial(_matches, password, secret or _NO_HASH))
            task = self._loop.create_task(self._check(digest, given, secret, work))
            task.add_done_callback(partial(self._checked, digest))
            check = self._checks[digest] = work, task
        work, task = check
        work.askers.append(has_gone)
        if not work.is_begun:
            self._enqueue(work, self._share(given.name, digest, secret, network, was_wrong))
        is_right = await asyncio.shield(task)
        if not is_right:
            _use(self._wrong, network, self._loop.time() + _WRONG_S, _WRONG_MAX)
        return is_right

    async def hash(self, password: str) -> bytes:
        """Return the hash of a new password.

        Raises:
            Busy: too many are being hashed.
        """
        salt = bcrypt.gensalt(_COST, prefix=b"2a")
        work = self._work(partial(bcrypt.hashpw, password.encode()[:_PASSWORD_BYTES_MAX], salt))
        work.askers.append(lambda: False)
        self._enqueue(work, Share(_FIRST, b"", b""))
        hashed: bytes = await work.outcome
        return hashed

    def close(self) -> None:
        """Check nothing any more."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _share(
        self, name: str, digest: bytes, secret: bytes | None, network: str, was_wrong: bool
    ) -> Share:
        hashed, where = _name_digest(name), network.encode()
        if digest in self._right:
            return Share(_FIRST, hashed, b"")
        if hashed in self._names:
            return Share(_KNOWN_NAMES, hashed, where)
        if secret is None:
            return Share(_NO_USERS, where, hashed)
        is_known = self._wrong.get(network, 0.0) > self._loop.time()
        return Share(_OTHERS + was_wrong, hashed, where, is_new=not is_known)

    async def _check(self, digest: bytes, given: Basic, secret: bytes | None, work: _Work) -> bool:
        is_right = await work.outcome
        if not is_right or secret is None:
            return False
        self._remember(digest)
        _use(self._names, _name_digest(given.name), None, _KNOWN_MAX)
        return True

    def _remember(self, digest: bytes) -> None:
        _use(self._right, digest, self._loop.time() + _KNOWN_S, _KNOWN_MAX)

    def _checked(self, digest: bytes, task: asyncio.Task[bool]) -> None:
        del self._checks[digest]
        if not task.cancelled():
            task.exception()  # it is retrieved, even if no request waits for it any more

    def _work(self, do: Callable[[], Any]) -> _Work:
        return _Work(do, self._loop.create_future())

    def _enqueue(self, work: _Work, share: Share) -> None:
        work.until_s = self._loop.time() + _WAIT_S
        work.places += 1
        refused = self._queue.put(share, work)
        if refused is not None:
            refused.places -= 1
            if not refused.places and not refused.is_begun:
                self._loop.call_later(_REFUSED_S, _fail, refused.outcome, Busy())
        self._start()

    def _start(self) -> None:
        """Give work to the threads that have none."""
        passed_over = 0
        while self._idle and len(self._queue) and not self._closed:
            work = self._queue.pop()
            work.places -= 1
            if not (work.is_begun or work.outcome.done()):
                if work.is_wanted(self._loop.time()):
                    self._begin(work)
                    continue
                _fail(work.outcome, Busy())
            passed_over += 1
            if passed_over == _PASSED_OVER_MAX:
                self._loop.call_soon(self._start)
                return

    def _begin(self, work: _Work) -> None:
        work.is_begun = True
        self._idle -= 1
        done = self._loop.run_in_executor(self._pool, work.do)
        done.add_done_callback(partial(self._ended, work.outcome))

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


def _use(used: OrderedDict[_K, _V], key: _K, value: _V, size_max: int) -> None:
    """Note that something was used just now; what was not used for longest gives way."""
    used[key] = value
    used.move_to_end(key)
    if len(used) > size_max:
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
