"""node-etcd 7: each of its calls, and its watcher over a restart."""

import json
from pathlib import Path

import pytest

from tests.clients.processes import CACHE, program, run

pytestmark = pytest.mark.clients

CHECKS = Path(__file__).with_name("node_etcd.js")
LIBRARY = CACHE / "node" / "node_modules" / "node-etcd"
# More than the history holds, so that a watch from index 1 is refused.
HISTORY = 10


@pytest.fixture
def command() -> tuple[Path | str, ...]:
    if not LIBRARY.exists():
        pytest.skip("there is no node-etcd here; scripts/setup-clients installs it")
    return program("node"), CHECKS, LIBRARY


def test_every_call_does_what_it_says(command, make_server):
    server = make_server("--event-history-limit", str(HISTORY)).start()
    client = server.client()
    for number in range(HISTORY + 1):
        client.put("/filler", number)
    ended = run(*command, server.url)
    outcomes = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [outcome for outcome in outcomes if outcome["error"]] == []
    assert ended.returncode == 0, ended.stderr
    assert len(outcomes) == CHECKS.read_text().count("\n  async ")


def test_a_watcher_goes_on_after_a_kill(command, make_server, start):
    server = make_server().start()
    server.listen = server.url
    watcher = start(*command, server.url, "watcher")
    server.wait_for_watchers(1)
    first = server.client().put("/watched/a", "before").index
    watcher.wait_for(received("before", first))
    server.wait_for_watchers(1)
    server.kill()
    watcher.wait_for('{"reconnect":true}')
    server.start()
    # Whether it is written before the watcher is back or after, it is told, once.
    second = server.client().put("/watched/a", "after").index
    text = watcher.wait_for(received("after", second))
    assert text.count("after") == 1
    assert "failed" not in text


def received(value: str, index: int) -> str:
    return json.dumps({"change": value, "index": index}, separators=(",", ":"))
