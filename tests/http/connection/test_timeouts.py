"""Timeouts of heads, bodies and idle connections."""

import contextlib
import threading
import time

import pytest

from tests.monitoring.test_metrics import scrape
from tests.support.connections import (
    CLOSE,
    VERSION,
    assert_refused,
)
from tests.support.raw import Raw, chunked, request
from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    "sent",
    [b"G", b"GET / HTTP/1.1\r\nHost: h\r\n", VERSION + b"GET"],
    ids=["a byte", "a line", "second"],
)
def test_a_head_that_takes_too_long_is_given_up(impatient, sent):
    with Raw(impatient.port) as raw:
        raw.send(sent)
        if sent.startswith(VERSION):
            assert raw.answer().status == 200
        assert_refused(raw.answer(), 408)
        assert raw.closed()


@pytest.mark.parametrize("sent", [
    request("PUT", "/v2/keys/slow", body=b"value=1")[:-1],
    chunked("PUT", "/v2/keys/slow", b"value=1")[:-1],
    request("POST", "/v2/members", body=b"{}")[:-1],
])  # fmt: skip
def test_a_body_that_takes_too_long_is_given_up(impatient, sent):
    with Raw(impatient.port) as raw:
        assert_refused(raw.send(sent).answer(), 408)
        assert raw.closed()
    assert impatient.client().get("/slow").status == 404


def test_a_trickle_does_not_prolong_the_time(impatient):
    with Raw(impatient.port) as raw:
        stop = threading.Event()

        def trickle():
            try:
                for byte in request("GET", "/version", "X: " + "x" * 10_000):
                    raw.send(bytes((byte,)))
                    if stop.wait(0.05):
                        return
            except ConnectionError:
                pass

        sender = threading.Thread(target=trickle)
        sender.start()
        assert raw.head().status == 408
        stop.set()
        sender.join()


def test_an_idle_connection_is_closed_without_a_word(impatient):
    with Raw(impatient.port) as used:
        assert used.ask("GET", "/version").status == 200
        with Raw(impatient.port) as unused:
            assert unused.closed()
        assert used.closed()


def test_idle_connections_that_are_closed_are_counted_and_others_are_not(make_server):
    server = make_server("--idle-timeout-s", "1", "--header-timeout-s", "1").start()
    with Raw(server.port) as idle, Raw(server.port) as slow:
        assert_refused(slow.send(b"GET").answer(), 408)
        assert idle.closed()
    assert scrape(server.client())["kvd_connections_idle_closed_total"] == 1


def test_no_time_is_cut_short(make_server):
    server = make_server("--header-timeout-s", "1").start()
    with contextlib.ExitStack() as stack:
        # Whatever the server does once a second, one of these comes just before it.
        began = []
        for _ in range(10):
            began.append((time.monotonic(), stack.enter_context(Raw(server.port)).send(b"GET")))
            time.sleep(0.1)
        for since, raw in began:
            assert_refused(raw.answer(), 408)
            assert time.monotonic() - since >= 1


def test_the_time_of_a_head_counts_from_its_first_byte(make_server):
    server = make_server("--header-timeout-s", "1").start()
    with Raw(server.port) as silent, Raw(server.port) as begun:
        assert_refused(begun.send(b"GET").answer(), 408)
        assert silent.ask("GET", "/version").status == 200


def test_the_time_of_a_head_is_none_of_the_idle_time(make_server):
    server = make_server("--idle-timeout-s", "1").start()
    with Raw(server.port) as begun, Raw(server.port) as silent:
        whole = request("GET", "/version")
        begun.send(whole[:9])
        assert silent.closed()
        assert begun.send(whole[9:]).answer().status == 200
        assert begun.closed()


def test_the_time_of_a_body_is_none_of_its_head(make_server):
    server = make_server("--header-timeout-s", "1").start()
    with Raw(server.port) as body, Raw(server.port) as head:
        whole = request("PUT", "/v2/keys/slow", body=b"value=1")
        body.send(whole[:-3])
        assert_refused(head.send(b"GET").answer(), 408)
        assert body.send(whole[-3:]).answer().status == 201


def test_a_watch_is_not_idle(impatient):
    watch = impatient.watch("/w")
    with Raw(impatient.port) as idle:
        assert idle.closed()
        impatient.client().put("/w", 1)
        assert watch.event()["action"] == "set"


def test_a_client_that_never_reads_its_last_answer_is_cut(make_server):
    server = make_server("--write-timeout-s", "1").start()
    client = server.client()
    client.put("/big", "x" * (8 << 20))
    unread = 'kvd_rejected_requests_total{reason="answer_not_read"}'
    with Raw(server.port, receive_buffer=4096) as raw:
        raw.send(request("GET", "/v2/keys/big", CLOSE))
        wait_until(lambda: scrape(client)[unread] == 1)
        assert len(raw.rest()) < 8 << 20


def test_no_client_that_does_not_read_is_cut_early(make_server):
    server = make_server("--write-timeout-s", "1").start()
    client = server.client()
    client.put("/big", "x" * (8 << 20))
    client.put("/some", "x" * (64 << 10))
    unread = 'kvd_rejected_requests_total{reason="answer_not_read"}'
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(Raw(server.port, receive_buffer=4096)) for _ in range(10)]
        for raw in raws:
            # What its kernel takes is taken: from now on nothing more is read of it.
            raw.send(request("GET", "/v2/keys/some"))
        time.sleep(0.5)
        # Whatever the server does once a second, one of these comes just before it.
        began = []
        for raw in raws:
            began.append(time.monotonic())
            raw.send(request("GET", "/v2/keys/big"))
            time.sleep(0.1)
        for number, since in enumerate(began):
            wait_until(lambda cut=number: scrape(client)[unread] > cut)
            assert time.monotonic() - since >= 1
