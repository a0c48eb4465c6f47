"""Memory of the responses to one batch: they are prepared while the disk is at work."""

import json
import tracemalloc

from bench.cost.in_process import Inside
from bench.load.wire import is_complete, render
from kvd.core import log_writer
from kvd.handlers.keys import outcomes
from tests.support.held_sync import HeldSync
from tests.support.kernel_sync import needs_the_kernel
from tests.support.server import PATIENCE_S

WRITERS = 50
# As JSON six times as long.
VALUE = b"\x01" * 5000
RESPONSE_BYTES = 2 * 6 * len(VALUE)


@needs_the_kernel
def test_the_responses_of_a_batch_that_are_prepared_are_bounded(tmp_path, monkeypatch):
    disk = HeldSync()
    monkeypatch.setattr(log_writer, "data_sync", lambda: disk)
    monkeypatch.setattr(outcomes, "AT_ONCE_BYTES_MAX", 256 << 10)
    with Inside(tmp_path / "data", connections=WRITERS + 1) as kvd:
        for _ in range(2):
            grown, responses = write_together(kvd, disk)
        bodies = [json.loads(response.partition(b"\r\n\r\n")[2]) for response in responses]
    assert [body["node"]["key"] for body in bodies] == [f"/k{n}" for n in range(WRITERS)]
    assert {body["node"]["value"].encode() for body in bodies} == {VALUE}
    assert {body["prevNode"]["value"].encode() for body in bodies} == {VALUE}
    assert all(len(response) > RESPONSE_BYTES for response in responses)
    assert grown < WRITERS * RESPONSE_BYTES, "all of them were held"


@needs_the_kernel
def test_the_prepared_responses_of_a_large_batch_are_counted(tmp_path, monkeypatch):
    disk = HeldSync()
    monkeypatch.setattr(log_writer, "data_sync", lambda: disk)
    with Inside(tmp_path / "data", connections=WRITERS + 1) as kvd:
        memory = kvd._server._parts.http.memory
        write_together(kvd, disk)
        counted = []
        write_together(kvd, disk, lambda: counted.append(memory.answers))
        assert counted[0] >= WRITERS * RESPONSE_BYTES
        assert memory.answers == 0
        # Without room for them they are made one by one.
        memory.take(memory.answers_max - memory.reserve)
        _, responses = write_together(kvd, disk, lambda: counted.append(memory.answers))
        assert counted[1] <= memory.answers_max - memory.reserve + 2 * RESPONSE_BYTES
        assert all(len(response) > RESPONSE_BYTES for response in responses)


def write_together(kvd, disk, look=lambda: None):
    """Write with one batch; return what it takes while it is being synced, and the responses."""
    disk.submitted.clear()
    kvd.sockets[WRITERS].sendall(render("PUT", "/v2/keys/before", b"value=v"))
    assert disk.submitted.wait(PATIENCE_S)
    for n in range(WRITERS):
        kvd.sockets[n].sendall(render("PUT", f"/v2/keys/k{n}", b"value=" + VALUE))
    committer = kvd._server._parts.committer
    while committer.waiting < WRITERS:
        kvd.settle()
    tracemalloc.start()
    disk.submitted.clear()
    disk.end()
    kvd.receive(WRITERS)
    assert disk.submitted.wait(PATIENCE_S)
    kvd.settle()  # what is prepared is there
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    look()
    disk.end()
    return grown, [kvd.receive_until(n, is_complete) for n in range(WRITERS)]
