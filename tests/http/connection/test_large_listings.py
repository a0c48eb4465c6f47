"""Large listings, which take many turns of the loop."""

import contextlib

import pytest

from tests.support.connections import (
    LARGE,
    VERSION,
)
from tests.support.raw import Raw, request
from tests.support.server import Server


@pytest.fixture(scope="module")
def large(server: Server) -> str:
    """A directory of more keys than are rendered in one turn."""
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(Raw(server.port)) for _ in range(12)]
        for i in range(LARGE):
            key = f"/v2/keys/large-dir/{i:05}"
            writers[i % len(writers)].send(request("PUT", key, body=b"value=" + b"v" * 100))
        for i in range(LARGE):
            assert writers[i % len(writers)].answer().status == 201
    return "/v2/keys/large-dir"


def test_a_large_listing_is_whole_and_in_order(raw, large):
    answer = raw.ask("GET", f"{large}?sorted=true")
    keys = [child["key"] for child in answer.json["node"]["nodes"]]
    assert keys == [f"/large-dir/{i:05}" for i in range(LARGE)]
    assert raw.ask("GET", "/version").status == 200


def test_the_head_of_a_large_listing_has_no_length(raw, large):
    answer = raw.ask("HEAD", large)
    assert answer.status == 200
    assert not {"content-length", "transfer-encoding"} & answer.headers.keys()
    assert raw.ask("HEAD", f"{large}/00000").headers["content-length"] != "0"


def test_a_large_listing_shows_each_change(raw, large):
    def listed() -> dict[str, str]:
        answer = raw.ask("GET", large)
        assert raw.ask("GET", large).body == answer.body
        return {node["key"]: node["value"] for node in answer.json["node"]["nodes"]}

    before = listed()
    raw.ask("PUT", f"{large}/00007", body=b"value=other")
    raw.ask("PUT", f"{large}/new", body=b"value=new")
    changes = {"/large-dir/00007": "other", "/large-dir/new": "new"}
    assert listed() == before | changes
    raw.ask("DELETE", f"{large}/new")
    assert listed() == before | {"/large-dir/00007": "other"}


def test_others_are_served_while_large_listings_are_made(server, client, large):
    listings = [Raw(server.port) for _ in range(8)]
    for listing in listings:
        listing.send(request("GET", large))
    assert client.put("/meanwhile", 1).status in (200, 201)
    for listing in listings[:4]:
        listing.reset()
    for listing in listings[4:]:
        assert len(listing.answer().json["node"]["nodes"]) == LARGE
        listing.close()


def test_a_pipelined_large_listing_keeps_its_place(raw, large):
    raw.send(request("GET", large) + VERSION + request("GET", large) + VERSION)
    for _ in range(2):
        assert len(raw.answer().json["node"]["nodes"]) == LARGE
        assert raw.answer().body.startswith(b'{"etcdserver"')
