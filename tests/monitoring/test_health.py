"""`/health`, `/readyz` and `/livez`: what is wrong with a server, and with which of its parts."""

import re
import signal
import threading

from tests.monitoring.test_metrics import monitor, monitored, scrape  # noqa: F401 -- a fixture
from tests.support.log_texts import log_text
from tests.support.raw import Raw
from tests.support.server import Answer, Client

METRICS = ("--listen-metrics-urls", "http://127.0.0.1:0")
CHECKS = ("startup", "log", "space", "index", "damage", "shutdown")


def ready(client: Client, query: str = "") -> Answer:
    return client.request("GET", f"/readyz{query}")


def faulty(*faults: str) -> list[str]:
    return ["--enable-failpoints", *(f"--failpoint={fault}" for fault in faults)]


def assert_failed(client: Client, check: str, text: str) -> None:
    """One check fails and all others pass; `/health` says so in etcd's way."""
    answer = ready(client)
    assert answer.status == 503
    lines = answer.body.decode().splitlines()
    assert lines.pop() == "failed"
    failed = [line for line in lines if not line.endswith(" ok")]
    assert len(lines) == len(CHECKS)
    (line,) = failed
    assert re.fullmatch(rf"\[-\]{check} failed: {text}", line), line
    assert ready(client, f"?exclude={check}").body == b"ok\n"
    health = client.request("GET", "/health")
    assert (health.status, health.body) == (503, b'{"health":"false"}\n')
    assert health.headers["x-content-type-options"] == "nosniff"


def test_a_server_that_is_well(client):
    before = scrape(client)
    answer = client.request("GET", "/health")
    assert (answer.status, answer.body) == (200, b'{"health":"true"}')
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "x-content-type-options" not in answer.headers
    assert ready(client).body == b"ok\n"
    verbose = ready(client, "?verbose").body.decode()
    assert verbose == "".join(f"[+]{check} ok\n" for check in CHECKS) + "ok\n"
    assert client.request("GET", "/livez?verbose").body == b"[+]log ok\nok\n"
    for path in ("/readyz", "/livez"):
        assert client.request("HEAD", path).status == 200
        assert client.request("POST", path).headers["allow"] == "GET,HEAD"
    assert client.request("HEAD", "/health").headers["allow"] == "GET"
    after = scrape(client)
    assert after["etcd_server_health_success"] - before["etcd_server_health_success"] == 1
    assert all(after[f'kvd_check{{check="{check}"}}'] == 1 for check in CHECKS)


def test_without_room_for_writes_it_is_not_ready_but_alive(make_server):
    server = make_server(*METRICS, *faulty("walBeforeWrite=error:ENOSPC")).start()
    client = server.client()
    assert client.put("/a", 1).status == 500
    assert_failed(client, "space", r"no space left on device \(wal\)")
    assert client.request("GET", "/livez").status == 200
    assert client.request("GET", "/health?exclude=NOSPACE").status == 200
    assert client.get("/a").status == 404
    samples = scrape(client)
    assert samples['kvd_check{check="space"}'] == 0
    assert samples["etcd_server_health_failures"] == 1
    assert samples['kvd_rejected_requests_total{reason="not_written"}'] == 1
    assert samples["etcd_server_proposals_failed_total"] == 1
    assert samples['etcd_http_failed_total{code="500",method="PUT"}'] == 1


def test_damage_behind_the_index_is_shown_until_a_snapshot_lies_behind_it(make_server, tmp_path):
    server = make_server("--wal-segment-bytes", "65536").start()
    client = server.client()
    for i in range(40):
        assert client.put(f"/k{i}", "v" * 4000).status == 201
    server.terminate()
    first = min((tmp_path / "data" / "wal").glob("*.wal"))
    content = bytearray(first.read_bytes())
    content[5000] ^= 1
    first.write_bytes(content)
    server.start(*METRICS, *faulty("snapshotBeforeCopy=delay:600"))
    server.wait_for_log(log_text("What is kept of the log is damaged"))
    client = server.client()
    # Nothing of it is served, so everything is served.
    assert all(client.get(f"/k{i}").json["node"]["value"] == "v" * 4000 for i in range(40))
    assert client.put("/k0", "1").status == 200
    assert_failed(client, "damage", "the log behind the index is damaged, and .*")
    server.kill()
    server.start()
    server.wait_for_log("a snapshot was taken: the damaged part of the log is no longer needed")
    assert ready(server.client()).body == b"ok\n"
    server.kill()
    server.start("--rebuild-index")
    assert server.client().get("/k0").json["node"]["value"] == "1"


def test_a_sync_that_does_not_come_back_is_shown(make_server):
    server = make_server(*METRICS, *faulty("walAfterSync=delay:9@2")).start()
    writer = threading.Thread(target=server.client().put, args=["/a", 1])
    writer.start()
    client = server.client()
    while ready(client).status == 200:
        threading.Event().wait(0.2)
    assert_failed(client, "log", r"a sync has been taking \d s")
    live = client.request("GET", "/livez")
    assert (live.status, live.body.count(b"\n")) == (503, 2)
    writer.join()
    assert ready(client).status == 200
    server.wait_for_log("slow: 1 writes took up to 9.")
    samples = scrape(client)
    assert samples["kvd_slow_syncs_total"] == samples["etcd_server_slow_apply_total"] == 1
    assert samples['etcd_http_successful_duration_seconds_bucket{le="2.048",method="PUT"}'] == 0


def test_recovery_is_shown_on_the_listener_for_metrics(make_server):
    server = make_server(*METRICS, *faulty("startAfterReplay=delay:2"))
    starting = threading.Thread(target=server.start)
    starting.start()
    server.wait_for_log("serving metrics on")
    client = monitor(server)
    assert_failed(client, "startup", "the store is being recovered")
    assert client.request("GET", "/livez").status == 200
    assert "kvd_etcd_index" not in scrape(client)
    assert scrape(client)['kvd_check{check="startup"}'] == 0
    starting.join()
    assert ready(client).status == 200
    assert scrape(client)["kvd_etcd_index"] == 1


def test_a_shutdown_is_shown_until_it_is_over(make_server):
    server = make_server(*METRICS, *faulty("walAfterSync=delay:3@2")).start()
    client = monitor(server)
    with Raw(server.port) as raw:
        raw.send(b"PUT /v2/keys/a?value=1 HTTP/1.1\r\nHost: h\r\n\r\n")
        while not scrape(client)["kvd_connections"]:
            pass
        server.signal(signal.SIGTERM)
        server.wait_for_log("stopping")
        assert_failed(client, "shutdown", "the server is stopping")
        assert raw.answer().status == 201
    assert server.wait() == 0
