"""Rights to the extras of reads, over HTTP: more to see needs more rights."""

from collections.abc import Iterator

import pytest

from tests.support.guarded import DENIED, ROOT, ask_for_users, basic
from tests.support.server import Server, running

# By user: the patterns that its role may read.
USERS = {
    "one": ["/app", "/app/x"],
    "list": ["/app", "/app/*"],
    "all": ["/app*"],
}
USER = {name: basic(name, "password") for name in USERS}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for started in running(Server(tmp_path_factory.mktemp("data"))):
        client = started.client()
        ask_for_users(client)
        for name, patterns in USERS.items():
            role = {"role": name, "permissions": {"kv": {"read": patterns, "write": []}}}
            user = {"user": name, "password": "password", "roles": [name]}
            for path, document in (("roles", role), ("users", user)):
                text = str(document).replace("'", '"')
                made = client.request("PUT", f"/v2/auth/{path}/{name}", text, ROOT)
                assert made.status in (200, 201)
        for key in ("/app/x", "/app/_h", "/app/sub/y", "/other"):
            assert client.request("PUT", f"/v2/keys{key}", {"value": "v"}, ROOT).status == 201
        yield started


AS_LISTING = ["limit=1", "after=a", "prefix=x", "marks=1", "keysOnly=true", "maxValue=1", "depth=1"]
AS_RECURSIVE = ["count=true", "find=v", "hidden=true", "depth=2", "limit=1&hidden=true",
                "marks=1&hidden=true", "count=true&recursive=true", "recursive=true"]  # fmt: skip


@pytest.mark.parametrize("query", [*AS_LISTING, *AS_RECURSIVE])
@pytest.mark.parametrize("user", USERS)
def test_a_directory_is_read_with_the_right_to_what_is_shown(client, user, query):
    allowed = {"one": [], "list": AS_LISTING, "all": [*AS_LISTING, *AS_RECURSIVE]}[user]
    answer = client.request("GET", f"/v2/keys/app?{query}", headers=USER[user])
    if query in allowed:
        assert answer.status == 200
    else:
        assert (answer.status, answer.json) == (401, DENIED)
    # And nothing of what is beside it.
    other = client.request("GET", f"/v2/keys/other?{query}", headers=USER[user])
    assert (other.status, other.json) == (401, DENIED)
    root = client.request("GET", f"/v2/keys/?{query}", headers=USER[user])
    assert root.status == 401


@pytest.mark.parametrize("query", [*AS_LISTING, *AS_RECURSIVE])
def test_a_slash_at_the_end_is_judged_as_ever(client, query):
    answer = client.request("GET", f"/v2/keys/app/?{query}", headers=USER["list"])
    assert answer.status == 200


@pytest.mark.parametrize(
    "query", ["limit=1", "keysOnly=true", "raw=true", "base64=true", "marks=3"]
)
def test_a_file_is_read_with_the_right_to_it_alone(client, query):
    assert client.request("GET", f"/v2/keys/app/x?{query}", headers=USER["one"]).status == 200


def test_a_guest_and_a_stranger_see_nothing(client):
    for query in (*AS_LISTING, *AS_RECURSIVE):
        for headers in ({}, basic("all", "wrong")):
            assert client.request("GET", f"/v2/keys/app?{query}", headers=headers).json == DENIED
