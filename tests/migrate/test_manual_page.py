"""The page `migrate` of the manual: each example is run, with a real etcd next to the kvd."""

import json

from tests.project.test_manual import run_examples
from tests.support.documents import MANUAL, examples

PAGE = MANUAL / "migrate.md"

# What Patroni keeps: these last, leader and members have a TTL.
OF_PATRONI = {
    "/service/demo/initialize": "7312345678901234567",
    "/service/demo/config": json.dumps({"ttl": 30, "loop_wait": 10}),
}


def test_each_example_prints_what_the_page_says(recorded, start_etcd, make_server, tmp_path):
    etcd = start_etcd(tmp_path / "etcd")
    for key, value in OF_PATRONI.items():
        etcd.client.put(key, value)
    etcd.client.put("/service/demo/leader", "pg1", ttl=3600)
    recorded.rename(tmp_path / "default.etcd")
    server = make_server().start()
    there = f"127.0.0.1:{etcd.port}"
    found = [
        (command.replace("127.0.0.1:4001", there), output.replace("127.0.0.1:4001", there))
        for command, output in examples(PAGE)
    ]
    run_examples(found, server, tmp_path)
