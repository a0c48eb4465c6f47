"""passwords.py: a password is checked on a thread, once a minute, and never stored."""

import asyncio
import base64
import gc
import threading

import bcrypt
import pytest

from kvd.handlers import passwords
from kvd.handlers.passwords import Basic, Busy, Credentials, read_basic
from tests.support.checks import AL, CHEAP
from tests.support.committing import PATIENCE_S, on_a_loop, turns


def header(text):
    return "Basic " + base64.b64encode(text).decode()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (header(b"al:secret"), AL),
        (header(b"al:secret").replace("Basic", "bASIC"), AL),
        (header(b"al:a:b"), Basic("al", b"a:b")),
        (header(b":"), Basic("", b"")),
        (header(b"a\xff:\xff\0"), Basic("a\udcff", b"\xff\0")),
        (header(b"al"), None),
        (header(b"al:secret").replace(" ", "  "), None),
        (header(b"al:secret") + "=", None),
        (header(b"al:secre") + "A", None),
        (header(b"al:secre").rstrip("="), None),
        ("Basic YWw6c2VjcmV!", None),
        ("Basic YWw6c2Vj\u017f2V0", None),
        ("Bearer YWw6c2VjcmV0", None),
        ("Basic", None),
        ("junk", None),
    ],
)
def test_a_header_says_name_and_password_or_nothing(given, expected):
    assert read_basic(given) == expected


@on_a_loop
async def test_a_hash_is_one_that_etcd_reads_too(monkeypatch):
    monkeypatch.setattr(passwords, "_COST", 10)
    held = Credentials(asyncio.get_running_loop())
    secret = await held.hash("p\u00e4ss")
    assert secret.startswith(b"$2a$10$")
    assert bcrypt.checkpw("p\u00e4ss".encode(), secret)
    assert await held.hash("p\u00e4ss") != secret
    held.close()


@on_a_loop
async def test_of_a_password_seventy_two_bytes_count():
    held = Credentials(asyncio.get_running_loop())
    secret = await held.hash("p" * 73)
    for password, is_right in ((b"p" * 72, True), (b"p" * 72 + b"x", True), (b"p" * 71, False)):
        assert await held.are_right(Basic("al", password), secret) is is_right
    held.close()


@on_a_loop
async def test_a_right_password_is_known_for_a_minute(checks, monkeypatch):
    loop = asyncio.get_running_loop()
    held = Credentials(loop)
    secret = await held.hash("secret")
    assert not held.are_known(AL, secret)
    assert await held.are_right(AL, secret)
    now_s = loop.time()
    for other in (Basic("bo", b"secret"), Basic("al", b"secreT"), Basic("a", b"lsecret")):
        assert not held.are_known(other, secret)
    assert not held.are_known(AL, await held.hash("secret"))
    monkeypatch.setattr(loop, "time", lambda: now_s + 59)
    assert held.are_known(AL, secret)
    monkeypatch.setattr(loop, "time", lambda: now_s + 59 + 61)
    assert not held.are_known(AL, secret)
    monkeypatch.undo()
    assert len(checks.passwords) == 1
    held.close()


@on_a_loop
async def test_a_wrong_password_is_checked_each_time_and_never_known(checks):
    held = Credentials(asyncio.get_running_loop())
    secret = await held.hash("other")
    for _ in range(2):
        assert not await held.are_right(AL, secret)
        assert not held.are_known(AL, secret)
    assert checks.passwords == [b"secret"] * 2
    held.close()


@on_a_loop
async def test_an_unknown_user_costs_what_a_known_one_does(checks, monkeypatch):
    monkeypatch.setattr(passwords, "_COST", 10)
    held = Credentials(asyncio.get_running_loop())
    assert not await held.are_right(AL, None)
    assert not await held.are_right(AL, await held.hash("other"))
    assert len(checks.passwords) == 2
    assert checks.costs == {b"$2a$10$"}
    held.close()


@on_a_loop
async def test_what_is_used_is_known_for_longer(checks, monkeypatch):
    loop = asyncio.get_running_loop()
    held = Credentials(loop)
    secret = await held.hash("secret")
    assert await held.are_right(AL, secret)
    now_s = loop.time()
    for minute in range(3):
        monkeypatch.setattr(loop, "time", lambda at=now_s + 50 * (minute + 1): at)
        assert held.are_known(AL, secret)
    assert not held.are_known(AL, await held.hash("secret"))  # the same password, set again
    monkeypatch.undo()
    assert len(checks.passwords) == 1
    held.close()


@on_a_loop
async def test_the_loop_goes_on_and_equal_checks_are_one(checks):
    held = Credentials(asyncio.get_running_loop())
    secret = await held.hash("secret")
    checks.go_on.clear()
    waiting = [asyncio.create_task(held.are_right(AL, secret)) for _ in range(50)]
    await turns()
    waiting.pop().cancel()  # one who has gone takes nobody along
    await turns()
    assert not any(task.done() for task in waiting)
    checks.go_on.set()
    assert all(await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_S))
    assert len(checks.passwords) == 1
    assert threading.get_ident() not in checks.threads
    held.close()


@on_a_loop
async def test_too_many_are_turned_away(checks, monkeypatch):
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    monkeypatch.setattr(passwords, "_WAITING_MAX", 3)
    held = Credentials(asyncio.get_running_loop())
    secret = await held.hash("secret")
    checks.go_on.clear()
    names = ("a", "b", "c", "d", "e")  # one is checked, three wait, and one more gives way
    waiting = [
        asyncio.create_task(held.are_right(Basic(name, b"secret"), secret)) for name in names
    ]
    await turns()
    checks.go_on.set()
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), PATIENCE_S)
    assert [isinstance(outcome, Busy) for outcome in outcomes] == [False, True, False, False, False]
    assert await held.are_right(AL, secret)
    held.close()


@on_a_loop
async def test_requests_that_are_turned_away_are_answered_after_a_while(checks, monkeypatch):
    """Or clients that guess would come back at once, as often as the loop can bear."""
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    monkeypatch.setattr(passwords, "_WAITING_MAX", 1)
    loop = asyncio.get_running_loop()
    held = Credentials(loop)
    checks.go_on.clear()
    waiting = [asyncio.create_task(held.are_right(Basic("al", b"%d" % n), CHEAP)) for n in range(3)]
    began_s = loop.time()
    with pytest.raises(Busy):
        await asyncio.wait_for(waiting[1], PATIENCE_S)
    assert loop.time() - began_s >= passwords._REFUSED_S - 0.1
    checks.go_on.set()
    await asyncio.wait_for(asyncio.gather(waiting[0], waiting[2]), PATIENCE_S)
    held.close()


@on_a_loop
async def test_what_is_known_is_bounded(monkeypatch):
    monkeypatch.setattr(passwords, "_KNOWN_MAX", 3)
    held = Credentials(asyncio.get_running_loop())
    secret = await held.hash("secret")
    people = [Basic(name, b"secret") for name in "abcde"]
    for name in people:
        assert await held.are_right(name, secret)
    assert [held.are_known(name, secret) for name in people] == [False, False, True, True, True]
    held.close()


@on_a_loop
async def test_no_password_is_kept():
    held = Credentials(asyncio.get_running_loop())
    secret = await held.hash("secret")
    assert await held.are_right(AL, secret)
    await turns()
    reached, todo = set(), [kept for kept in vars(held).values() if isinstance(kept, dict)]
    while todo:
        one = todo.pop()
        if id(one) not in reached and not callable(one):
            reached.add(id(one))
            todo += gc.get_referents(one)
            assert not (isinstance(one, str | bytes) and ("secret" in str(one)))
    held.close()


@on_a_loop
async def test_what_is_no_hash_is_of_no_user():
    held = Credentials(asyncio.get_running_loop())
    for secret in (b"", b"secret", b"$2a$10$short"):
        assert not await held.are_right(AL, secret)
    held.close()
