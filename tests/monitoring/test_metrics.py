"""`/metrics`: what dashboards of etcd ask for, what kvd says of itself, and that both are true."""

import asyncio
import json
import re
import threading
from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.cost.in_process import Inside
from kvd.core.histogram import DURATIONS_S, Histogram
from kvd.monitoring.disk_usage import DiskMeter, DiskUsage
from kvd.storage.usage import usage
from tests.support.log_texts import log_text
from tests.support.raw import Raw, request
from tests.support.server import PATIENCE_S, ROOT, Client, Server

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Asked of an etcd 3.4.23 with the v2 API: what it has beside Go's, gRPC's and v3's own.
ETCD_NAMES = (
    "etcd_cluster_version",
    "etcd_debugging_mvcc_db_total_size_in_bytes",
    "etcd_debugging_snap_save_total_duration_seconds",
    "etcd_debugging_store_expires_total",
    "etcd_debugging_store_reads_total",
    "etcd_debugging_store_watch_requests_total",
    "etcd_debugging_store_watchers",
    "etcd_debugging_store_writes_total",
    "etcd_disk_backend_commit_duration_seconds",
    "etcd_disk_wal_fsync_duration_seconds",
    "etcd_disk_wal_write_bytes_total",
    "etcd_http_failed_total",
    "etcd_http_received_total",
    "etcd_http_successful_duration_seconds",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "etcd_server_has_leader",
    "etcd_server_health_failures",
    "etcd_server_health_success",
    "etcd_server_heartbeat_send_failures_total",
    "etcd_server_id",
    "etcd_server_is_leader",
    "etcd_server_is_learner",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_failed_total",
    "etcd_server_proposals_pending",
    "etcd_server_read_indexes_failed_total",
    "etcd_server_slow_apply_total",
    "etcd_server_slow_read_indexes_total",
    "etcd_server_version",
    "os_fd_limit",
    "os_fd_used",
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
)

Samples = Mapping[str, float]


def scrape(client: Client) -> Samples:
    """All samples, by name and labels as they are written: `name{label="value"}`."""
    answer = client.request("GET", "/metrics")
    assert (answer.status, answer.headers["content-type"]) == (200, CONTENT_TYPE)
    return parse(answer.body.decode())


def parse(text: str) -> Samples:
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            name = sample.name + (f"{{{labels}}}" if labels else "")
            assert name not in samples, f"{name} is there twice"
            samples[name] = sample.value
    return samples


def names(samples: Samples) -> set[str]:
    return {re.sub(r"\{.*", "", name) for name in samples}


def growth(client: Client, act) -> Samples:
    """What a few steps add to the samples."""
    before = scrape(client)
    act()
    return {
        name: value - before.get(name, 0)
        for name, value in scrape(client).items()
        if value != before.get(name, 0)
    }


@pytest.mark.parametrize("name", ETCD_NAMES)
def test_the_names_of_etcd_are_there(client, name):
    client.get("/none")
    found = names(scrape(client))
    assert name in found or f"{name}_bucket" in found
    if name.endswith("_seconds") and name != "process_start_time_seconds":
        assert {f"{name}_bucket", f"{name}_sum", f"{name}_count"} <= found


def test_operations_are_counted_by_kind_and_method(fresh_server):
    client = fresh_server.client()

    def act() -> None:
        client.put("/a", 1)
        client.put("/a", 2, prevExist="false")  # 412
        client.put("/a", 2, prevValue="1")
        client.put("/none/x", 2, prevExist="true")  # 404
        client.post("/q", 1)
        client.get("/a")
        client.get("/", recursive="true")
        client.get("/nope")
        client.request("HEAD", "/v2/keys/a")
        client.put("/a", 1, ttl="x")  # no operation
        client.delete("/a", prevValue="x")  # 412
        client.delete("/q", recursive="true")
        with fresh_server.watch("/a", stream="true")._response:
            pass

    grown = growth(client, act)

    def of(name: str) -> dict[str, float]:
        return {k.partition("{")[2][:-1]: v for k, v in grown.items() if k.startswith(name + "{")}

    assert of("etcd_debugging_store_writes_total") == {
        'action="set"': 1,
        'action="create"': 2,
        'action="compareAndSwap"': 1,
        'action="update"': 1,
        'action="compareAndDelete"': 1,
        'action="delete"': 1,
    }
    assert of("etcd_debugging_store_reads_total") == {'action="get"': 3, 'action="getRecursive"': 1}
    assert of("etcd_http_received_total") == {
        'method="PUT"': 4,
        'method="POST"': 1,
        'method="GET"': 3,
        'method="HEAD"': 1,
        'method="DELETE"': 2,
    }
    assert of("etcd_http_failed_total") == {
        'code="404",method="GET"': 1,
        'code="404",method="PUT"': 1,
        'code="412",method="PUT"': 1,
        'code="412",method="DELETE"': 1,
    }
    assert of("etcd_http_successful_duration_seconds_count") == {
        'method="PUT"': 2,
        'method="POST"': 1,
        'method="GET"': 3,
        'method="DELETE"': 1,
    }
    assert grown["etcd_debugging_store_watch_requests_total"] == 1
    assert of("kvd_rejected_requests_total") == {'reason="invalid_parameter"': 1}
    assert grown["etcd_server_proposals_applied_total"] == 4
    assert grown["kvd_etcd_index"] == 4


def test_batches_syncs_and_commits_are_measured(fresh_server):
    client = fresh_server.client()

    def act() -> None:
        for i in range(5):
            client.put(f"/k{i}", "v" * 100)

    grown = growth(client, act)
    assert grown["kvd_batch_records_count"] == grown["kvd_batch_records_sum"] == 5
    assert grown['kvd_batch_records_bucket{le="1"}'] == 5
    assert grown["kvd_batch_duration_seconds_count"] == 5
    # A heartbeat of the log may be among them.
    assert grown["etcd_disk_wal_fsync_duration_seconds_count"] >= 5
    assert grown["kvd_wal_sync_duration_seconds_sum"] > 0
    assert grown["kvd_log_appended_bytes_total"] > 500
    name = "etcd_disk_backend_commit_duration_seconds_count"
    before = scrape(client).get(name, 0)
    client.put("/k", "v")
    # By the tick.
    while scrape(client).get(name, 0) == before:
        pass


def test_what_lies_on_the_disk_is_shown(make_server):
    server = make_server("--snapshot-count", "2").start()
    (server.data_dir / "quarantine" / "cut").write_bytes(b"x" * 10_000)
    client = server.client()
    for i in range(6):
        client.put(f"/k{i}", 1)
    server.wait_for_log(log_text("wrote a snapshot"))
    samples = scrape(client)
    assert samples["kvd_log_bytes"] >= 1 << 20
    assert samples["kvd_index_bytes"] > 0
    assert samples["kvd_quarantine_bytes"] >= 10_000
    assert samples["kvd_disk_free_bytes"] > 0
    assert 0 <= samples["kvd_snapshot_age_seconds"] < 600
    assert samples["kvd_snapshot_bytes"] > 0
    assert samples["kvd_recovery_records"] == 0
    assert samples['kvd_recovery_seconds{source="log"}'] > 0
    # The snapshot is counted a moment after it has been told.
    while not scrape(client)["kvd_snapshot_duration_seconds_count"]:
        pass


def test_a_scrape_walks_the_data_directory_once_and_not_on_the_loop(tmp_path):
    walks = []

    def note(frame, event, _argument):
        if event == "call" and frame.f_code is usage.__code__:
            walks.append(threading.current_thread().name)

    threading.setprofile(note)
    try:
        with Inside(tmp_path / "data") as kvd:
            assert b"kvd_log_bytes" in kvd.request("GET", "/metrics").body
    finally:
        threading.setprofile(None)
    assert len(walks) == 1
    assert walks != ["kvd"]  # the thread of the loop


def test_scrapes_at_the_same_time_share_a_measurement():
    began, go_on, results = threading.Event(), threading.Event(), []

    def measure():
        began.set()
        go_on.wait(PATIENCE_S)
        results.append(DiskUsage(*[len(results)] * len(DiskUsage._fields)))
        return results[-1]

    async def scrapes():
        meter = DiskMeter(measure)
        both = asyncio.gather(meter.refresh(), meter.refresh())
        await asyncio.to_thread(began.wait, PATIENCE_S)
        go_on.set()
        await both
        shared = meter.last
        await meter.refresh()
        return shared, meter.last

    assert asyncio.run(scrapes()) == tuple(results)
    assert len(results) == 2


def test_refusals_by_http_are_counted_by_reason(server, client):
    def act() -> None:
        for sent in (
            b"nonsense\r\n\r\n",
            request("GET", "/", "X: " + "x" * 70_000),
            request("GET", "/", "Expect: wonders"),
        ):
            with Raw(server.port) as raw:
                raw.send(sent).answer()

    grown = growth(client, act)
    for reason in ("malformed", "head_too_large", "expectation"):
        assert grown[f'kvd_rejected_requests_total{{reason="{reason}"}}'] == 1


def test_connections_and_watchers_are_gauges(fresh_server):
    client = fresh_server.client()
    before = scrape(client)
    watch = fresh_server.watch("/w")
    during = scrape(client)
    assert during["kvd_connections"] == before["kvd_connections"] + 1
    assert during["kvd_watchers"] == during["etcd_debugging_store_watchers"] == 1
    assert during["kvd_watch_backlog_bytes"] == 0
    client.put("/w", 1)
    watch.body()
    assert scrape(client)["kvd_watchers"] == 0


def test_metrics_answer_every_method_as_etcd_does(client):
    for method in ("POST", "PUT", "DELETE", "PATCH", "HEAD"):
        assert client.request(method, "/metrics").status == 200
    assert client.request("GET", "/metrics/").status == 404


@pytest.fixture
def monitored(make_server) -> Server:
    return make_server("--listen-metrics-urls", "http://127.0.0.1:0").start()


def monitor(server: Server) -> Client:
    (url,) = re.findall(r"serving metrics on (http://\S+)", server.stderr)[-1:]
    return server.client(url)


def test_a_listener_of_its_own_serves_monitoring_alone(monitored):
    client = monitor(monitored)
    assert names(scrape(client)) == names(scrape(monitored.client()))
    assert client.request("GET", "/health").body == b'{"health":"true"}'
    assert client.request("GET", "/readyz").body == b"ok\n"
    assert client.request("GET", "/livez").body == b"ok\n"
    for path in ("/version", "/v2/keys", "/debug/vars", "/config/local/log", "/", "//metrics"):
        assert client.request("GET", path).status == 404
    assert client.request("PUT", "/config/local/log", b"x" * 100_000).status == 404
    assert client.request("OPTIONS", "/health").status == 405
    # These connections are none of the clients'.
    assert scrape(client)["kvd_connections"] == 1


def test_expvars_are_those_of_the_real_server_as_far_as_they_exist(client):
    answer = client.request("GET", "/debug/vars")
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.body.startswith(b'{\n"cmdline": [')
    assert list(answer.json) == ["cmdline", "file_descriptor_limit", "memstats", "raft.status"]
    status = answer.json["raft.status"]
    assert status["raftState"] == "StateLeader"
    assert status["applied"] == status["commit"]
    member = client.request("GET", "/v2/members/leader").json["id"]
    assert status["id"] == status["lead"] == member
    assert client.request("POST", "/debug/vars").status == 405


def test_each_value_falls_below_the_bounds_that_are_not_below_it():
    histogram = Histogram((1, 2, 5))
    for value in (0.5, 1, 1.5, 5, 6):
        histogram.observe(value)
    histogram.observe(2, times=2)
    assert histogram.cumulative() == [("1", 2), ("2", 5), ("5", 6), ("+Inf", 7)]
    assert histogram.cumulative(lowest=2, highest=2) == [("2", 5), ("+Inf", 7)]
    assert histogram.total == 18


def test_bounds_of_durations_include_those_of_etcd():
    assert {0.001 * 2**k for k in range(14)} <= set(DURATIONS_S)
    assert {0.0005 * 2**k for k in range(13)} <= set(DURATIONS_S)
    shown = [bound for bound, _ in Histogram().cumulative(0.001)]
    assert shown[:3] == ["0.001", "0.002", "0.004"]
    assert shown[-2:] == ["8.192", "+Inf"]


def test_the_dashboard_asks_only_for_what_there_is(fresh_server):
    dashboard = json.loads((ROOT / "kvd" / "ui" / "grafana-kvd.json").read_text())
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            asked |= set(re.findall(r"\b(?:etcd|kvd|process|os)_[a-z_]+", target["expr"]))
    fresh_server.client().get("/none")
    found = names(scrape(fresh_server.client()))
    assert len(asked) > 25
    # Without a snapshot it has no age.
    assert asked - found <= {"kvd_snapshot_age_seconds"}
