"""Rights to keys: patterns, prefixes, writes alone, and watches that lose theirs."""

import contextlib
import json

import pytest

from tests.support.guarded import ROOT, ask_for_users, basic
from tests.support.raw import Raw, request
from tests.support.server import Answer, Server


class Held:
    """A server with a tree below /dir, and a user ("u") or a guest (None) with one role."""

    def __init__(self, server: Server, name: str | None) -> None:
        self.server = server
        self.client = server.client()
        self.name = name
        self.headers = basic("u", "u-password") if name else {}
        self.root("PUT", "/keys/dir/a", "value=SECRET-1")
        self.root("PUT", "/keys/dir/sub/b", "value=SECRET-2")
        if name:
            user = '{"user":"u","password":"u-password","roles":["r"]}'
            self.root("PUT", "/auth/users/u", user)

    def root(self, method: str, path: str, body: str | None = None) -> int:
        status = self.client.request(method, "/v2" + path, body, ROOT).status
        assert status in (200, 201, 401, 404), path
        return status

    def allow(self, read: list[str], write: list[str]) -> None:
        role = "r" if self.name else "guest"
        self.root("DELETE", f"/auth/roles/{role}")
        permissions = {"kv": {"read": read, "write": write}}
        document = json.dumps({"role": role, "permissions": permissions})
        assert self.root("PUT", f"/auth/roles/{role}", document) == 201

    def ask(self, method: str, path: str, body: str | None = None) -> Answer:
        return self.client.request(method, f"/v2/keys{path}", body, self.headers)


@pytest.fixture(params=["u", None], ids=["user", "guest"])
def held(request, guarded):
    return Held(guarded, request.param)


def test_a_pattern_without_a_star_is_that_key_alone(held):
    held.allow(["/dir", "/dir/a"], ["/dir", "/dir/a"])
    assert held.ask("GET", "/dir/a").status == 200
    assert held.ask("PUT", "/dir/a", "value=1").status == 200
    for method, path, body in (
        ("GET", "/dir", None),
        ("HEAD", "/dir", None),
        ("GET", "/dir?recursive=true", None),
        ("GET", "/dir?recursive=true&wait=true", None),
        ("GET", "/dir/sub/b", None),
        ("POST", "/dir", "value=1"),
        ("PUT", "/dir", "prevExist=true&dir=true&ttl=1"),
        ("PUT", "/dir", "prevExist=true&ttl=1"),
        ("DELETE", "/dir?recursive=true", None),
        ("DELETE", "/dir/sub?recursive=true&dir=true", None),
    ):
        assert held.ask(method, path, body).status == 401, (method, path)


def test_the_key_and_a_prefix_of_its_children_allow_both(held):
    held.allow(["/dir", "/dir/*"], ["/dir", "/dir/*"])
    assert held.ask("GET", "/dir").status == 200
    assert held.ask("POST", "/dir", "value=1").status == 201
    assert held.ask("PUT", "/dir", "prevExist=true&dir=true&ttl=100").status == 200
    assert held.ask("GET", "/dir/sub?recursive=true").status == 200
    assert held.ask("GET", "/dir/?recursive=true").status == 200
    assert held.ask("DELETE", "/dir/sub?recursive=true").status == 200


def test_a_prefix_of_names_allows_what_is_below_them(held):
    held.allow(["/di*"], ["/di*"])
    assert held.ask("GET", "/dir?recursive=true").status == 200
    assert held.ask("GET", "/dir").status == 200
    assert held.ask("POST", "/dir", "value=1").status == 201
    assert held.ask("DELETE", "/dir?recursive=true").status == 200


def test_users_that_may_only_write_are_shown_no_value(held):
    held.allow([], ["/dir/*"])
    assert held.ask("GET", "/dir/a").status == 401
    answers = [
        held.ask("PUT", "/dir/a", "value=1&prevValue=no"),
        held.ask("PUT", "/dir/a?prevIndex=1", "value=1"),
        held.ask("DELETE", "/dir/a?prevValue=no"),
        held.ask("PUT", "/dir/a", "prevExist=true&refresh=true&ttl=100"),
        held.ask("PUT", "/dir/a", "value=mine"),
        held.ask("PUT", "/dir/sub/b", "value=" + "x" * 300_000),
        held.ask("DELETE", "/dir/sub/b"),
    ]
    assert [answer.status for answer in answers] == [412, 412, 412, 200, 200, 200, 200]
    assert not any(b"SECRET" in answer.body for answer in answers)
    assert answers[4].json["node"]["value"] == "mine"
    assert "prevNode" not in answers[6].json
    # Whoever may read as well is shown what was there.
    held.allow(["/dir/*"], ["/dir/*"])
    assert held.ask("PUT", "/dir/a", "value=2").json["prevNode"]["value"] == "mine"
    assert held.ask("PUT", "/dir/a", "value=1&prevValue=no").json["cause"] == "[no != 2]"


def watching(held: Held, stack: contextlib.ExitStack, query: str) -> Raw:
    raw = stack.enter_context(Raw(held.server.port))
    lines = [f"{name}: {value}" for name, value in held.headers.items()]
    raw.send(request("GET", f"/v2/keys/dir?{query}", *lines))
    raw.head()
    return raw


@pytest.mark.parametrize(
    ("held", "end"),
    [
        *(("u", end) for end in ("role narrowed", "role removed", "user removed", "new password")),
        *((None, end) for end in ("role narrowed", "role removed")),
    ],
    indirect=["held"],
)
def test_a_watch_ends_when_its_right_does(held, end):
    held.allow(["/dir*"], [])
    with contextlib.ExitStack() as stack:
        ways = ("wait=true&recursive=true&stream=true", "wait=true&recursive=true", "wait=true")
        watches = [watching(held, stack, way) for way in ways]
        role = "r" if held.name else "guest"
        match end:
            case "role narrowed":
                held.root(
                    "PUT",
                    f"/auth/roles/{role}",
                    json.dumps({"role": role, "revoke": {"kv": {"read": ["/dir*"]}}}),
                )
            case "role removed":
                held.root("DELETE", f"/auth/roles/{role}")
            case "user removed":
                held.root("DELETE", "/auth/users/u")
            case "new password":
                held.root("PUT", "/auth/users/u", '{"user":"u","password":"another"}')
        held.root("PUT", "/keys/dir/a", "value=AFTERWARDS")
        for raw in watches:
            assert b"".join(raw.chunks()) == b""
            # The connection goes on with the next request, and nothing else.
            assert raw.ask("GET", "/version").status == 200


def test_a_watch_goes_on_while_its_right_does(held):
    held.allow(["/dir/*", "/dir*"], [])
    with contextlib.ExitStack() as stack:
        raw = watching(held, stack, "wait=true&recursive=true")
        held.root("PUT", "/auth/users/other", '{"user":"other","password":"p"}')
        role = "r" if held.name else "guest"
        held.root(
            "PUT",
            f"/auth/roles/{role}",
            json.dumps({"role": role, "revoke": {"kv": {"read": ["/dir/*"]}}}),
        )
        held.root("PUT", "/keys/dir/a", "value=AFTERWARDS")
        assert b"AFTERWARDS" in b"".join(raw.chunks())


def test_a_watch_from_before_users_were_asked_for_is_a_guests(fresh_server):
    client = fresh_server.client()
    with Raw(fresh_server.port) as raw:
        raw.send(request("GET", "/v2/keys/dir?wait=true&recursive=true&stream=true"))
        raw.head()
        ask_for_users(client)
        client.request("PUT", "/v2/keys/dir/a", "value=AFTERWARDS", ROOT)
        assert b"".join(raw.chunks()) == b""
