"""Disk usage of a data directory: nothing of it is left out."""

from kvd.storage.usage import usage


def test_a_log_on_another_disk_is_counted(tmp_path):
    elsewhere, data = tmp_path / "log", tmp_path / "data"
    elsewhere.mkdir()
    data.mkdir()
    (elsewhere / "1.wal").write_bytes(b"x" * 10_000)
    (data / "FORMAT").write_bytes(b"x")
    (data / "wal").symlink_to(elsewhere)
    assert [(part.part, part.files, part.length) for part in usage(data)] == [
        ("FORMAT", 1, 1),
        ("wal/", 1, 10_000),
    ]
