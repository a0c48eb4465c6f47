"""Pages of crowded directories, and many scans at once."""

import contextlib
import json
import threading
from collections.abc import Iterator

import pytest

from kvd.storage.tools.bulk_load import bulk_load
from tests.support.listings import ask, flat, pages
from tests.support.raw import Raw, request
from tests.support.server import Answer, Server, running

LONG_AND_SHORT = sorted([f"{number:04}" for number in range(2500)] + ["1" * 500, "2" * 600])


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("crowded") / "data"
    keys = ((b"/d/%06d" % n, b"value of %d" % n) for n in range(60_000))
    hidden = ((b"/h/_%06d" % n, b"v") for n in range(60_000))
    long = ((b"/l/" + name.encode(), b"v") for name in LONG_AND_SHORT)
    bulk_load(directory, (*keys, *hidden, *long, (b"/h/a", b"1"), (b"/h/z", b"2")))
    yield from running(Server(directory))


def test_pages_of_a_crowded_directory(crowded):
    client = crowded.client()
    names = [f"{n:06}" for n in range(60_000)]
    found: list[str] = []
    for answer in pages(client, "/d", "limit=10000&keysOnly=true"):
        found += [node["key"][3:] for node in answer.json["node"]["nodes"]]
    assert found == names
    assert ask(client, "/d", "marks=500").json["marks"] == names[499::500]
    counted = ask(client, "/d", "count=true").json
    assert counted["keys"] == 60_000 or not counted["complete"]
    found = []
    for answer in pages(client, "/d", "find=9999&limit=10000"):
        found += [node["key"][3:] for node in answer.json["nodes"]]
    assert found == [name for name in names if "9999" in name]


def test_long_names_are_marked_and_paged_in_their_order(crowded):
    client = crowded.client()
    assert ask(client, "/l", "marks=1000").json["marks"] == LONG_AND_SHORT[999::1000]
    assert ask(client, "/l", "marks=1000&prefix=1").json["count"] == 1001
    found = [flat(a.json["node"], "/l") for a in pages(client, "/l", "limit=900&keysOnly=false")]
    assert [name for page in found for name in page] == LONG_AND_SHORT


def test_what_is_hidden_is_passed_over(crowded):
    client = crowded.client()
    page = ask(client, "/h", "limit=5")
    assert list(flat(page.json["node"], "/h")) == ["a", "z"]
    assert ask(client, "/h", "count=true").json["keys"] == 2
    marks = ask(client, "/h", "marks=1").json
    assert (marks["count"], marks["hidden"], marks["marks"]) == (2, 60_000, ["a", "z"])


def test_a_large_listing_with_extras_is_the_plain_one(crowded):
    client = crowded.client()
    assert ask(client, "/d", "depth=5").body == ask(client, "/d", "recursive=true").body


def test_many_scans_at_once_are_answered(crowded):
    answers: list[Answer] = []

    def scan() -> None:
        with contextlib.closing(crowded.client()) as client:
            answers.append(ask(client, "/h", "marks=1000&hidden=true"))

    threads = [threading.Thread(target=scan) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].json["count"] == 60_002


def test_a_client_that_leaves_ends_its_scan(crowded):
    client = crowded.client()
    for _ in range(50):
        raw = Raw(crowded.port)
        raw.send(request("GET", "/v2/keys/d?find=nowhere")).reset()
    assert ask(client, "/h", "count=true").json["keys"] == 2
    assert json.loads(ask(client, "/d/000001").body)["node"]["value"] == "value of 1"
