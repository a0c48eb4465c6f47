"""Starting and stopping: the command line, the addresses, the data directory, and signals."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kvd
from tests.support.refusals import USAGE, assert_refused
from tests.support.server import ROOT, Server, run_kvd


@pytest.mark.parametrize("flag", ["--version", "-version", "--version=true"])
def test_version_is_printed(flag):
    ended = run_kvd(flag)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"kvd {kvd.__version__}")


@pytest.mark.parametrize("flag", ["--help", "-help", "-h"])
def test_help_is_printed(flag):
    ended = run_kvd(flag)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "--listen-client-urls" in ended.stdout


def test_the_kvd_command_is_the_module():
    command = Path(sys.executable).with_name("kvd")
    if not command.exists():
        pytest.skip("kvd is not installed in this environment")
    ended = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == run_kvd("--version").stdout


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--no-such-flag"], ["--no-such-flag"]),
        (["serve"], ["serve"]),
        (["--snapshot-count", "x"], ["--snapshot-count", '"x"']),
        (["--listen-client-urls", "https://127.0.0.1:2379"], ["--cert-file", "--auto-tls"]),
        (["--listen-client-urls", "http://127.0.0.1"], ["port"]),
    ],
    ids=lambda value: value[0],
)
def test_a_bad_command_line_is_refused_in_one_line(tmp_path, argv, words):
    ended = run_kvd("--data-dir", str(tmp_path / "data"), *argv)
    assert_refused(ended, *words)
    assert ended.returncode == USAGE
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_single_dashes_and_flags_of_etcd_are_understood(tmp_path):
    argv = ["-data-dir", str(tmp_path / "data"), "-name=infra0", "-enable-v2"]
    argv += ["-listen-client-urls", "http://127.0.0.1:0"]
    argv += ["-advertise-client-urls=http://kv.example:2379,http://127.0.0.1:4001"]
    argv += ["-initial-cluster-state", "new"]
    argv += ["-election-timeout=1000", "-heartbeat-interval", "100"]
    server = Server(tmp_path / "unused")
    server.flags = tuple(argv)
    try:
        server.start()
        client = server.client()
        member = client.request("GET", "/v2/members").json["members"][0]
        assert member["name"] == "infra0"
        assert member["clientURLs"] == ["http://kv.example:2379", "http://127.0.0.1:4001"]
        machines = client.request("GET", "/v2/machines")
        assert machines.body == b"http://127.0.0.1:4001, http://kv.example:2379"
        # One line for all flags that were taken without effect, and only those.
        (line,) = [line for line in server.stderr.splitlines() if "--election-timeout" in line]
        assert "--heartbeat-interval" in line
        assert "--name" not in line
    finally:
        server.stop()
    assert (tmp_path / "data").is_dir()
    assert not (tmp_path / "unused").exists()


def test_clients_receive_the_port_that_the_system_chose(fresh_server):
    client = fresh_server.client()
    machines = client.request("GET", "/v2/machines")
    assert machines.body.decode() == fresh_server.url


def test_each_of_several_urls_serves_the_same_data(make_server):
    server = make_server(listen="http://127.0.0.1:0,http://127.0.0.1:0").start()
    first, second = (server.client(url) for url in server.urls)
    assert first.put("/a", "1").status == 201
    assert second.get("/a").json["node"]["value"] == "1"


def test_ipv6_addresses_are_listened_on(make_server):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = make_server(listen="http://[::1]:0").start()
    assert server.client().request("GET", "/version").status == 200


def test_start_says_what_was_recovered_and_where_it_listens(make_server):
    server = make_server().start()
    client = server.client()
    for number in range(3):
        client.put(f"/{number}", "x")
    server.kill()
    before = len(server.stderr)
    server.start()
    lines = server.stderr[before:].splitlines()
    assert any("recovered" in line for line in lines)
    assert re.search(r"listening on http://127\.0\.0\.1:\d+", lines[-1])


def test_a_lock_that_no_process_holds_is_no_obstacle(make_server):
    server = make_server().start()
    server.kill()
    lock = server.data_dir / "LOCK"
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel has let go of it
    server.start()


def test_a_directory_of_a_fresh_clone_is_taken_and_closed_to_others(make_server, tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    path.chmod(0o755)
    (path / ".gitkeep").touch()
    make_server(data_dir=path).start()
    assert path.stat().st_mode & 0o777 == 0o700


def test_files_are_readable_by_their_owner_only(make_server):
    server = make_server().start()
    client = server.client()
    client.put("/secret", "x")
    paths = [server.data_dir, *server.data_dir.rglob("*")]
    assert [path for path in paths if path.stat().st_mode & 0o077] == []


def test_missing_directories_above_the_data_are_made(make_server, tmp_path):
    path = tmp_path / "a" / "b" / "data"
    make_server(data_dir=path).start()
    assert (path / "FORMAT").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_signal_ends_waiting_watches_cleanly_within_a_second(fresh_server, number):
    client = fresh_server.client()
    client.put("/a", "1")
    poll = fresh_server.watch("/a")
    stream = fresh_server.watch("/a", stream="true", waitIndex=2)
    assert stream.event()["node"]["modifiedIndex"] == 2

    began = time.monotonic()
    fresh_server.signal(number)
    # A proper last chunk: anything else raises IncompleteRead.
    assert poll.body() == b""
    assert stream.body() == b""
    assert fresh_server.wait() == 0
    assert time.monotonic() - began < 1.0


def test_a_clean_stop_says_so_and_loses_nothing(make_server):
    server = make_server().start()
    client = server.client()
    index = client.put("/a", "1").index
    assert server.terminate() == 0
    assert "stopped" in server.stderr.splitlines()[-1]
    server.start()
    client = server.client()
    answer = client.get("/a")
    assert (answer.json["node"]["modifiedIndex"], answer.index) == (index, index)


def test_the_same_port_can_be_taken_again_at_once(make_server):
    server = make_server().start()
    # The side that ends a connection keeps its address for a minute: here that is the server.
    server.client().put("/a", "1")
    server.listen = server.url
    server.kill()
    server.start()
    assert server.client().get("/a").status == 200


def test_a_relative_directory_is_below_the_working_directory(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "kvd", "--listen-client-urls", "http://127.0.0.1:0"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "listening on" in line:
                    break
            assert (tmp_path / "default.etcd" / "FORMAT").exists()
        finally:
            process.kill()


def test_it_runs_as_well_on_the_loop_of_the_standard_library(make_server):
    without = (
        "import sys; sys.modules['uvloop'] = None; from kvd.__main__ import main; sys.exit(main())"
    )
    server = make_server(launch=("-c", without)).start()
    client = server.client()
    watch = server.watch("/a")
    assert client.put("/a", "1").status == 201
    assert watch.event()["node"]["value"] == "1"
    assert client.get("/a").json["node"]["value"] == "1"
    assert server.terminate() == 0


def test_the_environment_and_a_file_are_followed(make_server, tmp_path):
    file = tmp_path / "kvd.yml"
    file.write_text("name: from-the-file\nadvertise-client-urls: http://kv.example:2379\n")
    environment = {"ETCD_CONFIG_FILE": str(file), "KVD_NAME": "from-the-variable"}
    server = make_server(environment=environment | {"ETCD_NONSENSE": "x"}).start()
    member = server.client().request("GET", "/v2/members").json["members"][0]
    assert member["name"] == "from-the-variable"
    assert member["clientURLs"] == ["http://kv.example:2379"]
    assert "WARNING unknown variables, ignored: ETCD_NONSENSE\n" in server.stderr


def test_the_configuration_is_printed_without_starting(tmp_path):
    ended = run_kvd("--print-config", "--data-dir", str(tmp_path / "data"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"data-dir: {tmp_path / 'data'}" in ended.stdout
    assert not (tmp_path / "data").exists()


def test_a_token_gives_a_new_store_the_ids_that_etcd_makes_of_it(make_server):
    argv = ("--initial-advertise-peer-urls", "http://127.0.0.1:36801")

    def ids(server: Server) -> tuple[str, str, list[str]]:
        answer = server.client().request("GET", "/v2/members")
        (member,) = answer.json["members"]
        return answer.headers["x-etcd-cluster-id"], member["id"], member["peerURLs"]

    server = make_server(*argv)
    # As a real etcd 3.4.23 with these flags called them.
    expected = ("200c1d261ff644a3", "7097e2fd4ada182e", ["http://127.0.0.1:36801"])
    assert ids(server.start("--initial-cluster-token", "tok")) == expected
    server.terminate()
    # They are the store's for good.
    assert ids(server.start("--initial-cluster-token", "other")) == expected
