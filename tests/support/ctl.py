"""Runs of kvdctl in this process, over stores made for them."""

import logging
import os
import shutil
from random import Random

from kvd.ctl import main
from kvd.storage.errors import StorageError
from kvd.storage.snapshot import directory as snapshots
from kvd.storage.store import Options, Store
from kvd.storage.tools.digest import digest as digest_of
from tests.support.stores import (
    NOW_NS,
    SECOND_NS,
    live,
    log_documents,
    open_store,
    random_command,
    random_document,
    sweep,
    write,
)

SMALL_SEGMENT = 8192


def kvdctl(capsys, *argv):
    """Run a verb; return its exit status, what it prints, and what it complains of."""
    mask = os.umask(0o022)
    try:
        status = main.main([str(arg) for arg in argv])
    except SystemExit as end:
        status = end.code
    finally:
        os.umask(mask)
    out, err = capsys.readouterr()
    return status, out, err


def printed_digest(capsys, path, *argv):
    status, out, err = kvdctl(capsys, "digest", *argv, path)
    assert status == 0, err
    received, index = out.split()
    return received, int(index)


def contents(path):
    """Every file with its content, except LOCK."""
    return {
        file.relative_to(path): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != "LOCK"
    }


def make_store(path, seed=1, batches=40):
    """A store with a life behind it: two snapshots, log before and after them, some segments."""
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    store.start_term(NOW_NS, 40)
    for part in range(3):
        live(store, Random(seed * 10 + part), batches)
        if part < 2:
            store.flush()
            store.snapshot()
    store.close()
    return path


def history_of_digests(path, *, count, snapshot_every):
    """Let a store live, some indexes a batch; return the digest it had after each batch."""
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    store.start_term(NOW_NS, 30)
    dice = Random(7)
    at = {}
    now_ns = NOW_NS
    last = 1
    while len(at) < count:
        now_ns += dice.choice((1, SECOND_NS))
        write(store, random_command(dice), now_ns=now_ns)
        if dice.random() < 0.1:
            sweep(store, now_ns)
        if dice.random() < 0.2:
            log_documents(store, random_document(dice), now_ns=now_ns)
        at[store.applied.index] = digest_of(store.view)
        if store.applied.index - last >= snapshot_every:
            last = store.applied.index
            store.flush()
            store.purge(store.snapshot())
    store.close()
    return at


def check_restores(tmp_path, capsys, rounds):
    path = tmp_path / "data"
    at = history_of_digests(path, count=6 * rounds, snapshot_every=2 * rounds)
    header = snapshots.read_header(snapshots.available(path / "snap")[-1])
    reachable = [index for index in at if index >= header.index]
    assert len(reachable) >= rounds
    for index in Random(3).sample(reachable, rounds):
        target = tmp_path / f"at-{index}"
        status, _, err = kvdctl(capsys, "restore", "--to-index", index, path, target)
        assert status == 0, err
        assert printed_digest(capsys, target) == (at[index], index)
        shutil.rmtree(target)


def flip(path, offset, bit=0x10):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ bit,)))


def start_outcome(path, caplog):
    """Open a store as a server would: whether it starts, and with how many warnings."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        try:
            Store.open(path, Options(segment_bytes_max=SMALL_SEGMENT)).close()
        except StorageError:
            return False, len(caplog.records)
    return True, len(caplog.records)
