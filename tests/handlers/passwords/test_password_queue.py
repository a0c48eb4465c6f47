"""The order of password checks: shares of addresses and names, guesses last, a full queue."""

import asyncio
from functools import partial

import pytest

from kvd.handlers import passwords
from kvd.handlers.passwords import Basic, Busy, Credentials
from tests.support.checks import AL, CHEAP, order_of
from tests.support.committing import PATIENCE_S, on_a_loop, turns


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
async def test_the_last_to_come_does_not_wait_for_all_before(checks, monkeypatch, names, networks):
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
async def test_guesses_come_behind_users_that_have_not_been_wrong(checks, monkeypatch, waiting):
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
async def test_a_name_that_asks_again_is_the_newest_again(checks, monkeypatch):
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
    monkeypatch.setattr(passwords, "_NO_HASH", CHEAP)
    order = await order_of(held, checks, [*users, *nobodies])
    assert all(order.index(b"right %d" % n) <= 6 for n in range(3))
    held.close()


@on_a_loop
async def test_what_no_client_waits_for_is_not_checked(checks, monkeypatch):
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
async def test_requests_that_have_waited_for_long_are_turned_away(checks, monkeypatch):
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
async def test_a_full_queue_turns_away_the_user_with_most_in_it(checks, monkeypatch):
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
