"""passwords.py: a password is checked beside the loop, once a minute, and never kept."""

import asyncio
import base64
import gc
import threading
from functools import partial

import bcrypt
import pytest

from kvd.handlers import passwords
from kvd.handlers.passwords import Basic, Busy, Credentials, read_basic
from tests.support.committing import PATIENCE_S, on_a_loop, turns

AL = Basic("al", b"secret")
CHEAP = bcrypt.hashpw(b"never said", bcrypt.gensalt(4, prefix=b"2a"))


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


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(passwords, "_COST", 4)


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


@pytest.fixture
def checks(monkeypatch):
    return Checks(monkeypatch)


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
async def test_who_was_right_is_known_for_a_minute(checks, monkeypatch):
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
async def test_who_was_wrong_is_checked_each_time_and_never_known(checks):
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


@on_a_loop
async def test_addresses_share_the_checks(checks, monkeypatch):
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    held = Credentials(asyncio.get_running_loop())
    guesses = [(Basic("al", b"guess %d" % n), CHEAP, "attacker") for n in range(20)]
    order = await order_of(held, checks, [*guesses, (AL, CHEAP, "elsewhere")])
    assert order.index(b"secret") <= 2
    held.close()


@on_a_loop
async def test_names_share_the_checks_of_one_address(checks, monkeypatch):
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    held = Credentials(asyncio.get_running_loop())
    guesses = [(Basic("root", b"guess %d" % n), CHEAP, "same") for n in range(20)]
    order = await order_of(held, checks, [*guesses, (AL, CHEAP, "same")])
    assert order.index(b"secret") <= 2
    held.close()


@pytest.mark.parametrize("names", ["one name", "many names"])
@pytest.mark.parametrize("networks", ["one network", "many networks"])
@on_a_loop
async def test_who_comes_last_does_not_wait_for_all_before(checks, monkeypatch, names, networks):
    """After a restart no name has succeeded lately, and guesses look like anybody's."""
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    held = Credentials(asyncio.get_running_loop())
    guesses = [
        (
            Basic("al" if names == "one name" else f"name {n}", b"guess %d" % n),
            CHEAP,
            "same" if networks == "one network" else f"network {n}",
        )
        for n in range(40)
    ]
    order = await order_of(held, checks, [*guesses, (AL, CHEAP, "same")])
    assert order.index(b"secret") <= 2
    held.close()


@pytest.mark.parametrize("waiting", [1, 40])
@on_a_loop
async def test_guesses_come_behind_who_has_not_been_wrong(checks, monkeypatch, waiting):
    """Each guess that was wrong is followed by another, of the same user."""
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    held = Credentials(asyncio.get_running_loop())
    for n in range(20):
        assert not await held.are_right(Basic("al", b"%d" % n), CHEAP, f"network {n}")
    checks.go_on.clear()
    tasks = []

    def ask(password, **options):
        given = Basic("al", password)
        tasks.append(asyncio.create_task(held.are_right(given, CHEAP, **options)))

    ask(b"first", network="network 0")
    await turns()
    for n in range(waiting):
        ask(b"from its network %d" % n, network=f"network {n % 20}")
        ask(b"on its connection %d" % n, network=f"network {n % 20}", was_wrong=True)
        await turns()
    for n in range(3):
        ask(b"new %d" % n, network=f"new {n}")
    await turns()
    for n in range(waiting):
        ask(b"once more %d" % n, network=f"network {n % 20}", was_wrong=True)
    await turns()
    before = len(checks.passwords)
    checks.go_on.set()
    await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
    order = checks.passwords[before:]
    assert all(order.index(b"new %d" % n) <= 14 for n in range(3))
    held.close()


@on_a_loop
async def test_who_asks_again_is_the_newest_again(checks, monkeypatch):
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    held = Credentials(asyncio.get_running_loop())
    guesses = [(Basic("al", b"guess %d" % n), CHEAP, "same") for n in range(40)]
    again = (AL, CHEAP, "same")
    order = await order_of(held, checks, [again, *guesses, again])
    assert order.index(b"secret") == 0
    assert sorted(order) == sorted([b"secret", *(given.password for given, _, _ in guesses)])
    held.close()


@on_a_loop
async def test_names_of_no_user_delay_no_user(checks, monkeypatch):
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    held = Credentials(asyncio.get_running_loop())
    nobodies = [(Basic(f"nobody {n}", b"guess %d" % n), None, f"network {n}") for n in range(20)]
    users = [(Basic(f"user {n}", b"right %d" % n), CHEAP, "same") for n in range(3)]
    monkeypatch.setattr(passwords, "_NOBODY", CHEAP)
    order = await order_of(held, checks, [*users, *nobodies])
    assert all(order.index(b"right %d" % n) <= 6 for n in range(3))
    held.close()


@on_a_loop
async def test_what_nobody_waits_for_is_not_checked(checks, monkeypatch):
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    held = Credentials(asyncio.get_running_loop())
    gone = set()
    waiting = [
        asyncio.create_task(
            held.are_right(Basic("al", b"%d" % n), CHEAP, "a", partial(gone.__contains__, n))
        )
        for n in range(200)
    ]
    checks.go_on.clear()
    await turns()
    waiting.append(asyncio.create_task(held.are_right(Basic("al", b"2"), CHEAP, "b")))
    await turns()
    gone.update(range(1, 200))
    checks.go_on.set()
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), PATIENCE_S)
    # Two wait for the same: one of them is still there.
    assert sorted(checks.passwords) == [b"0", b"2"]
    assert sum(isinstance(outcome, Busy) for outcome in outcomes) == 198
    held.close()


@on_a_loop
async def test_who_has_waited_for_long_is_turned_away(checks, monkeypatch):
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    monkeypatch.setattr(passwords, "_WAIT_S", -1.0)
    held = Credentials(asyncio.get_running_loop())
    with pytest.raises(Busy):
        await held.are_right(AL, CHEAP)
    assert not checks.passwords
    held.close()


@on_a_loop
async def test_a_user_whose_password_was_right_before_is_checked_first(checks, monkeypatch):
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    monkeypatch.setattr(passwords, "_KNOWN_S", 0.0)
    held = Credentials(asyncio.get_running_loop())
    secret = await held.hash("secret")
    assert await held.are_right(AL, secret)
    guesses = [(Basic("al", b"guess %d" % n), secret, "same") for n in range(20)]
    order = await order_of(held, checks, [*guesses, (AL, secret, "same")])
    assert order[0] == b"secret"
    held.close()


@on_a_loop
async def test_guesses_at_many_names_do_not_delay_names_in_use(checks, monkeypatch):
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    held = Credentials(asyncio.get_running_loop())
    assert await held.are_right(AL, await held.hash("secret"))
    new = await held.hash("new")
    guesses = [(Basic(f"nobody {n}", b"guess"), CHEAP, "same") for n in range(20)]
    order = await order_of(held, checks, [*guesses, (Basic("al", b"new"), new, "same")])
    assert order.index(b"new") <= 2
    held.close()


@on_a_loop
async def test_a_full_queue_turns_away_whoever_has_most_in_it(checks, monkeypatch):
    monkeypatch.setattr(passwords, "_THREADS_MAX", 1)
    monkeypatch.setattr(passwords, "_WAITING_MAX", 10)
    held = Credentials(asyncio.get_running_loop())
    secret = await held.hash("secret")
    assert await held.are_right(AL, secret)
    checks.go_on.clear()
    guesses = [
        asyncio.create_task(held.are_right(Basic("root", b"%d" % n), CHEAP, "attacker"))
        for n in range(30)
    ]
    await turns()
    monkeypatch.setattr(passwords, "_KNOWN_S", 0.0)
    honest = [
        asyncio.create_task(held.are_right(AL, secret, "attacker")),
        asyncio.create_task(held.are_right(Basic("bo", b"secret"), secret, "elsewhere")),
        asyncio.create_task(held.hash("another")),
    ]
    await turns()
    checks.go_on.set()
    assert await asyncio.wait_for(asyncio.gather(*honest), PATIENCE_S)
    outcomes = await asyncio.gather(*guesses, return_exceptions=True)
    assert sum(isinstance(outcome, Busy) for outcome in outcomes) == 30 - 1 - 10 + len(honest)
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
async def test_who_is_turned_away_is_told_so_after_a_while(checks, monkeypatch):
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
    for who in people:
        assert await held.are_right(who, secret)
    assert [held.are_known(who, secret) for who in people] == [False, False, True, True, True]
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
async def test_what_is_no_hash_is_nobodys():
    held = Credentials(asyncio.get_running_loop())
    for secret in (b"", b"secret", b"$2a$10$short"):
        assert not await held.are_right(AL, secret)
    held.close()
