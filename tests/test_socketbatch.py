"""The same bytes to many sockets at once: who took them, who did not, and how far."""

import contextlib
import platform
import socket

import pytest

from kvd.socketbatch import SOCKETS_MAX, SocketBatch
from storage import aio

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def batch():
    with contextlib.closing(SocketBatch()) as batch:
        yield batch


@pytest.fixture
def pairs():
    with contextlib.ExitStack() as stack:

        def make(count: int) -> list[Pair]:
            made = [socket.socketpair() for _ in range(count)]
            for here, there in made:
                stack.enter_context(here)
                stack.enter_context(there)
                here.setblocking(False)
            return made

        yield make


def files(pairs: list[Pair]) -> list[int]:
    return [here.fileno() for here, _ in pairs]


@pytest.mark.parametrize("count", [0, 1, 2, SOCKETS_MAX - 1, SOCKETS_MAX])
def test_all_are_sent_the_same(batch, pairs, count):
    made = pairs(count)
    assert batch.send(b"first", files(made)) == []
    assert batch.send(b"and second", files(made)) == []
    assert [there.recv(100) for _, there in made] == [b"firstand second"] * count


def test_a_batch_leaves_nothing_behind_for_the_next(batch, pairs):
    many, few = pairs(100), pairs(3)
    batch.send(b"a" * 1000, files(many))
    assert batch.send(b"b", files(few)) == []
    assert [there.recv(2000) for _, there in few] == [b"b"] * 3
    assert [there.recv(2000) for _, there in many] == [b"a" * 1000] * 100


def test_who_takes_a_part_is_told_with_how_much(batch, pairs):
    made = pairs(5)
    data = b"0123456789abcdef" * (1 << 16)
    for full in (made[1], made[3]):
        while True:
            try:
                full[0].send(b"x" * 65536)
            except BlockingIOError:
                break
    sent = dict(batch.send(data, files(made)))
    assert set(sent) == {0, 1, 2, 3, 4}
    assert sent[1] == sent[3] == 0
    for place in (0, 2, 4):
        assert 0 < sent[place] < len(data)
        received = b""
        while len(received) < sent[place]:
            received += made[place][1].recv(1 << 20)
        assert received == data[: sent[place]]


def test_one_that_fails_keeps_no_other_from_being_sent(batch, pairs):
    made = pairs(6)
    made[1][1].close()
    made[4][0].shutdown(socket.SHUT_WR)
    assert batch.send(b"data", files(made)) == [(1, 0), (4, 0)]
    assert [made[place][1].recv(10) for place in (0, 2, 3, 5)] == [b"data"] * 4


def test_behind_what_is_no_open_file_nothing_is_sent(batch, pairs):
    made = pairs(4)
    numbers = files(made)
    made[2][0].close()
    assert batch.send(b"data", numbers) == [(2, 0), (3, 0)]
    assert [made[place][1].recv(10) for place in (0, 1)] == [b"data"] * 2
    assert batch.send(b"more", files(made[:2])) == []


def test_an_outcome_that_cannot_be_had_is_an_error(pairs):
    batch = SocketBatch()
    batch._calls = batch._calls._replace(getevents=-1)
    with pytest.raises(OSError, match="io_getevents"):
        batch.send(b"data", files(pairs(2)))
    batch.close()


def test_where_it_cannot_be_had_it_cannot_be_made(monkeypatch):
    monkeypatch.delitem(aio.CALLS, platform.machine())
    with pytest.raises(OSError, match="not implemented"):
        SocketBatch()
