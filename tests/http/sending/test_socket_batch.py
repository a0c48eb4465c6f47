"""The same bytes to many sockets at once: sent, in part, or refused."""

import contextlib
import errno
import os
import platform
import socket
import threading

import pytest

from kvd.http.sending import socket_batch
from kvd.http.sending.socket_batch import SOCKETS_MAX, SocketBatch, SocketPair
from kvd.storage import aio

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def two_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


@pytest.fixture(params=[SocketBatch, SocketPair])
def batch(request, two_processors):
    with contextlib.closing(request.param()) as batch:
        yield batch


@pytest.fixture
def pair(two_processors):
    with contextlib.closing(SocketPair()) as pair:
        yield pair


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


def test_a_share_that_is_taken_is_reported_with_its_size(batch, pairs):
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


# By two threads.


def shared_out(pair: SocketPair, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let each thread wait until the other has taken something; return who sends what."""
    others = threading.Barrier(2, timeout=60)
    senders = []
    for batch in pair._many:

        def send(data, files, send=batch.send):
            name = threading.current_thread().name
            if name not in senders:
                senders.append(name)
                others.wait()
            else:
                senders.append(name)
            return send(data, files)

        monkeypatch.setattr(batch, "send", send)
    return senders


def test_a_part_of_many_is_sent_by_the_second_thread(pair, pairs, monkeypatch):
    made = pairs(SOCKETS_MAX)
    for place in (3, 100, 255):
        made[place][1].close()
    senders = shared_out(pair, monkeypatch)
    assert sorted(pair.send(b"data", files(made))) == [(3, 0), (100, 0), (255, 0)]
    assert set(senders) == {threading.current_thread().name, "kvd-tell"}
    assert len(senders) == 4
    for place, (_, there) in enumerate(made):
        if place not in (3, 100, 255):
            assert there.recv(100) == b"data"


def test_many_events_come_in_order_whichever_thread_sends_them(pair, pairs):
    made = pairs(200)
    received = [b"%d," % number for number in range(100)]
    for data in received:
        assert pair.send(data, files(made)) == []
    for _, there in made:
        assert there.recv(1 << 16) == b"".join(received)


@pytest.mark.parametrize("thread", [0, 1], ids=["the caller", "the second thread"])
def test_what_either_thread_meets_is_the_callers_error(pair, pairs, monkeypatch, thread):
    shared_out(pair, monkeypatch)
    send = pair._many[thread].send

    def lose(data, files):
        send(data, files)
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(pair._many[thread], "send", lose)
    made = pairs(SOCKETS_MAX)
    with pytest.raises(OSError, match="lost"):
        pair.send(b"data", files(made))
    # Neither of them still sends.
    assert pair._sent.empty()


def test_few_are_sent_to_without_the_second_thread(pair, pairs, monkeypatch):
    monkeypatch.delattr(pair, "_jobs")
    made = pairs(100)
    assert pair.send(b"data", files(made)) == []
    monkeypatch.undo()


def test_the_second_thread_ends_with_it(two_processors):
    pair = SocketPair()
    second = pair._second
    assert second.is_alive()
    pair.close()
    assert not second.is_alive()


def no_thread(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def no_further_queue(monkeypatch):
    opened = iter([aio.open_queue])

    def open_queue(length, **options):
        for open_one in opened:
            return open_one(length, **options)
        raise OSError(errno.EAGAIN, "no more")

    monkeypatch.setattr(socket_batch, "open_queue", open_queue)


def one_processor(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})


@pytest.mark.parametrize("lacks", [one_processor, no_thread, no_further_queue])
def test_the_caller_sends_alone_where_there_is(lacks, two_processors, monkeypatch, pairs):
    lacks(monkeypatch)
    with contextlib.closing(SocketPair()) as pair:
        assert pair._second is None
        made = pairs(SOCKETS_MAX)
        assert pair.send(b"data", files(made)) == []
        assert [there.recv(100) for _, there in made] == [b"data"] * SOCKETS_MAX
