"""kvd/client/exchanges.py step by step, without sockets: how long each may take, what is closed."""

import pytest

from kvd.client import TransportError
from kvd.client.exchanges import PAUSE_MAX_S, Exchanges
from kvd.client.wire import Call, Connect, Endpoint, Receive, Send, Sleep

TIMEOUT_S = 100.0
ENDPOINTS = [Endpoint.parse(f"http://127.0.0.1:{port}") for port in (1, 2)]
READ = Call("GET", "/v2/keys/a", {})
WRITE = Call("PUT", "/v2/keys/a", {}, is_write=True)


class Connection:
    is_open = True

    def is_stale(self) -> bool:
        return False

    def close(self) -> None:
        self.is_open = False


@pytest.mark.parametrize(("call", "share"), [(READ, 0.5), (WRITE, 1)], ids=["read", "write"])
def test_a_write_that_was_sent_may_take_all_of_the_time(call, share):
    request = Exchanges(ENDPOINTS, "", TIMEOUT_S, kept=1).request(call)
    step = request.send(None)
    assert isinstance(step, Connect)
    assert step.timeout == pytest.approx(TIMEOUT_S / 2, rel=0.1)
    for kind in (Send, Receive):
        step = request.send(Connection() if kind is Send else None)
        assert isinstance(step, kind)
        assert step.timeout == pytest.approx(TIMEOUT_S * share, rel=0.1)


def test_the_pauses_between_tries_grow_to_a_limit():
    exchanges = Exchanges(ENDPOINTS, "", TIMEOUT_S, kept=1)
    exchanges.rounds = 20
    request, pauses = exchanges.request(READ), []
    step = request.send(None)
    while len(pauses) < exchanges.rounds - 1:
        if isinstance(step, Sleep):
            pauses.append(step.seconds)
            step = request.send(None)
        else:
            step = request.throw(ConnectionRefusedError())
    request.throw(ConnectionRefusedError())
    with pytest.raises(TransportError):
        request.throw(ConnectionRefusedError())
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1] == PAUSE_MAX_S


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("answered", [0, 1], ids=["before it is sent", "before its response"])
def test_a_request_that_is_interrupted_closes_its_connection(error, answered):
    request, connection = Exchanges(ENDPOINTS, "", TIMEOUT_S, kept=1).request(WRITE), Connection()
    request.send(None)
    request.send(connection)
    for _ in range(answered):
        request.send(None)
    with pytest.raises(error):
        request.throw(error)
    assert not connection.is_open
