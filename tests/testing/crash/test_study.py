"""A study of crash recovery as anyone would write it: clients, a crash, a restart, the ledger."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import kvd
from kvd.testing.crash import DISCONNECTED, Clients, Connection, Ledger, Violation


@pytest.fixture
def server(tmp_path: Path) -> Iterator[kvd.Server]:
    with kvd.Server(tmp_path / "data", event_history_limit=100_000) as server:
        yield server


def test_what_was_acknowledged_is_there_after_each_crash(server):
    ledger, clients = Ledger(), Clients(4, seed=1, reads=True)
    for _ in range(3):
        clients.start(server.url)
        clients.wait(40)
        server.crash()
        requests = clients.join()
        server.start()
        ledger.check(requests, server.url)
    assert ledger.acked >= 120
    assert len(ledger.facts) == ledger.acked + ledger.happened_unanswered
    assert ledger.happened_unanswered <= ledger.in_doubt <= 3 * 4


def test_a_store_that_has_lost_writes_is_found(server, tmp_path):
    clients = Clients(2, seed=1)
    clients.start(server.url, 10)
    requests = clients.join()
    with (
        kvd.Server(tmp_path / "other") as empty,
        pytest.raises(Violation, match="acknowledged and lost"),
    ):
        Ledger().check(requests, empty.url)


def test_a_write_that_no_request_explains_is_found(server):
    with Connection(server.url) as connection:
        connection.put("/a", "1")
    with pytest.raises(Violation, match="no request explains this event"):
        Ledger().check([], server.url)


def test_a_server_that_does_not_respond_is_a_violation(server):
    url = server.url
    server.stop()
    with pytest.raises(Violation, match="does not respond"):
        Ledger().check([], url)
    server.start()


def test_every_kind_of_request_fits_into_the_order(server):
    requests = []
    with Connection(server.url, requests) as connection:
        connection.put("/d", "", dir="true")
        statuses = [
            connection.put("/a/b", "1").status,
            connection.put("/a/b", "2", prevValue="1").status,
            connection.put("/a/b", "3", prevValue="1").status,
            connection.put("/a/b", "3", prevIndex=1).status,
            connection.put("/a", "3", prevExist="false").status,
            connection.put("/d", "3", prevExist="false").status,
            connection.post("/q", "x").status,
            connection.get("/none").status,
            connection.get("/a").status,
            connection.delete("/a/b", prevValue="7").status,
            connection.delete("/a", recursive="true").status,
            connection.delete("/d").status,
            connection.put("/ttl", "1", ttl=1000).status,
        ]
    assert statuses == [201, 200, 412, 412, 412, 412, 201, 404, 200, 412, 200, 403, 201]
    ledger = Ledger()
    ledger.check(requests, server.url)
    assert ledger.acked == 6
    assert [fact.action for fact in ledger.facts][:3] == ["set", "set", "compareAndSwap"]


def test_a_study_can_begin_with_what_is_there(server):
    requests = []
    with Connection(server.url, requests) as connection:
        connection.put("/a/b", "1")
        ledger = Ledger()
        ledger.begin(server.url)
        del requests[:]
        connection.get("/a/b")
        connection.put("/a/b", "2")
        assert connection.put("/a", "2", prevExist="false").status == 412
    ledger.check(requests, server.url)
    assert list(ledger.state.files) == ["/a/b"]


def test_a_history_that_is_too_short_is_named(tmp_path):
    with kvd.Server(tmp_path / "data", event_history_limit=10) as server:
        clients = Clients(1, seed=1)
        clients.start(server.url, 60)
        requests = clients.join()
        with pytest.raises(LookupError, match=r"no events from 2 on: .*401"):
            Ledger().check(requests, server.url)


@pytest.mark.parametrize(
    ("key", "params"),
    [("/a", {"refresh": "true", "ttl": 9}), ("/a/_b", {})],
    ids=["refresh", "hidden"],
)
def test_what_watches_do_not_report_is_refused(server, key, params):
    requests = []
    with Connection(server.url, requests) as connection:
        connection.put(key, "1", **params)
    with pytest.raises(ValueError, match="no refreshes and no hidden keys"):
        Ledger().check(requests, server.url)


def test_a_request_without_a_response_stays_in_the_list(server):
    requests = []
    with Connection(server.url, requests) as connection:
        connection.put("/a", "1")
        server.crash()
        with pytest.raises(DISCONNECTED):
            connection.put("/a", "2")
    assert [(request.status, request.in_doubt) for request in requests] == [(201, False), (0, True)]
    server.start()
    ledger = Ledger()
    ledger.check(requests, server.url)
    assert (ledger.acked, ledger.in_doubt) == (1, 1)


def test_waiting_for_clients_ends_with_the_server(server):
    clients = Clients(2, seed=1)
    clients.start(server.url)
    clients.wait(1)
    server.crash()
    clients.join()
    with pytest.raises(TimeoutError, match="acknowledged writes, expected 1000000"):
        clients.wait(1_000_000)
    server.start()


def test_clients_can_be_stopped(server):
    clients, ledger = Clients(2, seed=1), Ledger()
    clients.start(server.url)
    with pytest.raises(RuntimeError, match="at work"):
        clients.start(server.url)
    clients.wait(5)
    ledger.check(clients.stop(), server.url)
    assert ledger.in_doubt == 0


def test_a_server_that_lists_no_keys_is_a_violation(server):
    with kvd.Client(server.url) as client:
        client.set("/k", "1")
    with Connection(server.url) as connection:
        connection._http.request("PUT", "/v2/auth/users/root", b'{"user":"root","password":"p"}')
        assert connection._http.getresponse().read()
        connection._http.request("PUT", "/v2/auth/enable")
        assert connection._http.getresponse().status == 200
        connection._http.close()
        connection._http.request(
            "DELETE", "/v2/auth/roles/guest", headers={"Authorization": "Basic cm9vdDpw"}
        )
        assert connection._http.getresponse().status == 200
    for ask in (lambda: Ledger().check([], server.url), lambda: Ledger().begin(server.url)):
        with pytest.raises(Violation, match=r"does not list its keys: 40[13]"):
            ask()


def test_an_address_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        Connection("unix:///run/kvd.sock")
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        Clients(1, seed=1).start("https://127.0.0.1:2379")
