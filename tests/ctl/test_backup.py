"""kvdctl backup, offline and of a running server."""

import json
import threading

import pytest

from tests.support.ctl import contents, flip, kvdctl, printed_digest


def test_an_offline_backup_holds_what_the_store_holds(data, tmp_path, capsys):
    before = contents(data)
    status, out, err = kvdctl(capsys, "backup", data, tmp_path / "backup")
    assert (status, err) == (0, "")
    assert "read back, and good" in out
    assert contents(data) == before
    assert printed_digest(capsys, tmp_path / "backup") == printed_digest(capsys, data)
    assert kvdctl(capsys, "verify", tmp_path / "backup")[0] == 0


def test_a_backup_of_damaged_data_is_none(data, tmp_path, capsys):
    flip(sorted((data / "wal").glob("*.wal"))[-2], 4200)
    status, _, err = kvdctl(capsys, "backup", data, tmp_path / "backup")
    assert status == 65
    assert "kvdctl verify" in err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data"]


class Load:
    """Writers that count what was acknowledged."""

    def __init__(self, server, writers=3):
        self.index = 0
        self._stop = threading.Event()
        clients = [server.client() for _ in range(writers)]
        self._threads = [
            threading.Thread(target=self._write, args=[client, number])
            for number, client in enumerate(clients)
        ]

    def _write(self, client, number):
        count = 0
        while not self._stop.is_set():
            count += 1
            answer = client.put(f"/{number}/{count % 50}", "v" * 300)
            self.index = max(self.index, answer.index)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("backups", [10, pytest.param(100, marks=pytest.mark.durability_full)])
def test_backups_under_load_hold_all_that_was_acknowledged_before(
    make_server, tmp_path, capsys, backups
):
    server = make_server("--wal-segment-bytes", "65536", "--snapshot-count", "400").start()
    with Load(server) as load:
        for number in range(backups):
            acknowledged = load.index
            copy = tmp_path / f"backup-{number}"
            status, _, err = kvdctl(capsys, "backup", server.data_dir, copy)
            assert status == 0, err
            received, index = printed_digest(capsys, copy)
            assert index >= acknowledged
            assert kvdctl(capsys, "verify", copy)[0] == 0
            assert printed_digest(capsys, copy, "--to-index", index) == (received, index)


def test_backups_are_states_that_the_store_has_passed_through(make_server, tmp_path, capsys):
    server = make_server().start()
    backups = []
    with Load(server) as load:
        for number in range(5):
            copy = tmp_path / f"backup-{number}"
            assert kvdctl(capsys, "backup", server.data_dir, copy)[0] == 0
            backups.append(printed_digest(capsys, copy))
    assert backups[-1][1] <= load.index
    assert server.terminate() == 0
    for received, index in backups:
        assert printed_digest(capsys, server.data_dir, "--to-index", index) == (received, index)


def test_a_running_server_keeps_readers_out_unless_they_insist(fresh_server, capsys):
    fresh_server.client().put("/a", "1")
    for verb in ("verify", "dump", "digest"):
        status, out, err = kvdctl(capsys, verb, fresh_server.data_dir)
        assert (status, out) == (73, "")
        assert "in use by process" in err
        status, out, err = kvdctl(capsys, verb, "--force", fresh_server.data_dir)
        assert (status, err) == (0, "")
        assert out
    for argv in (["compact"], ["repair", "--truncate-at", "1", "--yes"]):
        assert kvdctl(capsys, *argv, fresh_server.data_dir)[0] == 73


def test_reading_a_live_log_is_not_fooled_by_frames_in_the_making(make_server, capsys):
    server = make_server("--wal-segment-bytes", "65536").start()
    with Load(server) as load:
        for _ in range(5):
            acknowledged = load.index
            assert printed_digest(capsys, server.data_dir, "--force")[1] >= acknowledged
            status, out, err = kvdctl(capsys, "dump", "--force", server.data_dir)
            assert status == 0, err
            indexes = [json.loads(line).get("index") for line in out.splitlines()]
            indexes = [index for index in indexes if index is not None]
            assert indexes == list(range(2, indexes[-1] + 1))
            assert indexes[-1] >= acknowledged
