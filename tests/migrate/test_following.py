"""Following a server: no change is lost, whatever the watches do not tell."""

import json
import signal
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

from kvd.client.operations import Operations
from kvd.client.sockets import Driver
from kvd.migrate.importing import Import, Options
from kvd.migrate.live import Caller
from kvd.storage import disk
from tests.migrate.test_import import DIGEST, OPTIONS, done, refused, wait_for
from tests.support.server import PATIENCE_S


class Follower:
    """`kvdctl import --follow`, from when it has copied the key `/sign`."""

    def __init__(self, source, target, stop: Path, *flags: str) -> None:
        self._stop = stop
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "kvd.ctl.main", "import", "--follow", *flags),
                *("--stop-file", stop, source.url, target.url if target is not None else stop),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> str:
        """What it prints, once it has cut over."""
        self._stop.touch()
        out, err = self.process.communicate(timeout=PATIENCE_S)
        assert (self.process.returncode, err) == (0, "")
        assert DIGEST.search(out)
        return out

    def sleep_while(self, write) -> None:
        """Stop it in its tracks while something is written."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            write()
        finally:
            self.process.send_signal(signal.SIGCONT)


def test_events_that_the_history_has_lost_are_read_instead(make_server, tmp_path):
    limit = ("--event-history-limit", "20")
    source = make_server(*limit, data_dir=tmp_path / "one").start()
    target = make_server(data_dir=tmp_path / "other").start()
    client, there = source.client(), target.client()
    client.put("/sign", "0")
    follower = Follower(source, target, tmp_path / "stop")
    wait_for(lambda: there.get("/sign").status == 200)
    ledger = {}

    def write() -> None:
        for number in range(100):
            ledger[f"/app/k{number % 70}"] = f"v{number}"
            client.put(f"/app/k{number % 70}", f"v{number}")

    follower.sleep_while(write)
    # They are put right while it follows, and not at its end alone.
    wait_for(lambda: there.get("/app/k69").status == 200)
    client.put("/sign", "1")
    wait_for(lambda: there.get("/sign").json["node"]["value"] == "1")
    assert "0 refreshed TTLs and 0 other changes taken over" in follower.end()
    assert {key: there.get(key).json["node"]["value"] for key in ledger} == ledger


def test_hidden_events_of_the_past_are_passed_over(make_server, tmp_path):
    """A watch for what has happened tells of hidden keys, of which nothing else is known."""
    source = make_server("--extras=false", data_dir=tmp_path / "one").start()
    target = make_server(data_dir=tmp_path / "other").start()
    client, there = source.client(), target.client()
    client.put("/_h/a/b", "1")
    client.put("/sign", "0")
    client.put("/_seen", "0")
    follower = Follower(source, target, tmp_path / "stop", "--hidden", "/_seen")
    wait_for(lambda: there.get("/sign").status == 200)

    def write() -> None:
        client.delete("/_h", recursive="true")
        client.put("/_h/a", "a file now")
        client.delete("/_h/a")
        client.put("/_h/a/b", "2")
        client.delete("/_seen")
        client.put("/sign", "1")

    follower.sleep_while(write)
    wait_for(lambda: there.get("/sign").json["node"]["value"] == "1")
    follower.end()
    assert there.get("/_h/a/b").status == 404
    # What was named and is gone is gone there, too.
    assert there.get("/_seen").status == 404


def test_a_directory_is_followed_over_lost_events(make_server, tmp_path):
    source = make_server("--event-history-limit", "20", data_dir=tmp_path / "one").start()
    client = source.client()
    client.put("/sign", "0")
    asked = []

    def is_over() -> bool:
        """Before the first poll more is written than the history holds; then there is an end."""
        if not asked:
            for number in range(100):
                client.put(f"/app/k{number}", f"v{number}")
        asked.append(1)
        return len(asked) > 2

    operations = Operations(source.url, **OPTIONS)
    said: list[str] = []
    options = Options(follow=True, is_over=is_over)
    Import(
        options,
        lambda _: Caller(operations, Driver(None)),
        said.append,
        lambda items, _: items,
        lambda _: None,
    ).run(source.url, str(tmp_path / "new"))
    operations.exchanges.close()
    assert said[-1] == "cut over at 102"
    there = make_server(data_dir=tmp_path / "new").start().client()
    assert there.get("/app/k99").json["node"]["value"] == "v99"


def test_a_clock_that_differs_shortens_no_ttl(make_server, tmp_path, capsys, monkeypatch):
    source = make_server("--extras=false", data_dir=tmp_path / "one").start()
    target = make_server(data_dir=tmp_path / "other").start()
    hidden = ("/_a", "/_b")
    for key in ("/app/t", *hidden):
        source.client().put(key, "1", ttl=600)
    now_ns = disk.wall_clock_ns
    monkeypatch.setattr(disk, "wall_clock_ns", lambda: now_ns() + 500 * 10**9)
    flags = [flag for key in hidden for flag in ("--hidden", key)]
    out = done(capsys, "import", *flags, source.url, target.url)
    assert "the clock of the source differs by -" in out
    assert "TTLs are corrected by it" in out
    for key in ("/app/t", *hidden):
        assert 550 < target.client().get(key).json["node"]["ttl"] <= 602


def test_a_hidden_key_that_never_was_is_an_error(make_server, tmp_path, capsys):
    source = make_server("--extras=false", data_dir=tmp_path / "one").start()
    source.client().put("/a", "1")
    status, err = refused(capsys, "import", "--hidden", "/_x", source.url, tmp_path / "new")
    assert (status, "/_x" in err) == (4, True)


def test_a_tree_deeper_than_the_stack_goes_everywhere(make_server, tmp_path, capsys):
    source = make_server("--max-key-depth", "3000", data_dir=tmp_path / "one").start()
    key = "/" + "/".join("d" * 1500)
    source.client().put(key, "deep")
    target = make_server("--max-key-depth", "3000", data_dir=tmp_path / "other").start()
    assert DIGEST.search(done(capsys, "import", source.url, tmp_path / "new"))
    assert DIGEST.search(done(capsys, "import", source.url, target.url))
    assert target.client().get(key).json["node"]["value"] == "deep"
    for form in ("yaml", "json", "jsonl"):
        file = tmp_path / f"deep.{form}"
        done(capsys, "-C", source.url, "export", "-o", file)
        done(capsys, "import", file, tmp_path / f"of-{form}")


def test_one_password_from_standard_input_is_for_both_servers(make_server, tmp_path):
    servers = [make_server(data_dir=tmp_path / name).start() for name in ("one", "other")]
    servers[0].client().put("/app/k", "v")
    for server in servers:
        root = json.dumps({"user": "root", "password": "secret"})
        assert server.client().request("PUT", "/v2/auth/users/root", root).status == 201
        assert server.client().request("PUT", "/v2/auth/enable", "").status == 200
        guest = json.dumps({"role": "guest", "revoke": {"kv": {"read": ["/*"], "write": ["/*"]}}})
        headers = {"Authorization": f"Basic {b64encode(b'root:secret').decode()}"}
        answer = server.client().request("PUT", "/v2/auth/roles/guest", guest, headers=headers)
        assert answer.status == 200
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "kvd.ctl.main", "-u", "root", "--password-file", "-"),
            *("import", servers[0].url, servers[1].url),
        ],
        input="secret\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert DIGEST.search(ended.stdout)
