"""The page `/ui` as it is served: files and their headers, the session, the status, the flag."""

import hashlib
import json
import re

import pytest

import kvd
from kvd.handlers.ui.files import HEADERS
from kvd.monitoring.samples import FIELDS
from tests.support.guarded import AL, ROOT, ask_for_users, basic
from tests.support.server import ROOT as REPOSITORY

UI = REPOSITORY / "kvd" / "ui"


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/none", "/ui/session.json", "/ui/status.json"])
def test_each_answer_confines_the_page(client, path):
    answer = client.request("GET", path)
    assert lower(HEADERS).items() <= answer.headers.items()
    assert "www-authenticate" not in answer.headers
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", ["/ui/", "/ui/session.json", "/ui/status.json"])
def test_a_page_of_another_site_is_allowed_to_read_nothing(client, path):
    headers = {"Origin": "https://evil.example", "Cookie": "a=b"}
    answer = client.request("GET", path, headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_has_a_relative_place(client):
    answer = client.request("GET", "/ui")
    assert (answer.status, answer.headers["location"]) == (308, "ui/")
    assert client.request("HEAD", "/ui").status == 308
    assert client.request("GET", "/ui/").headers["content-type"] == "text/html; charset=utf-8"


def test_each_file_is_served_and_not_sent_twice(client):
    files = [path for path in UI.rglob("*") if path.is_file()]
    assert len(files) > 20
    for file in files:
        target = f"/ui/{file.relative_to(UI)}"
        answer = client.request("GET", target)
        assert (answer.status, answer.body) == (200, file.read_bytes()), target
        assert answer.headers["cache-control"] == "no-cache"
        again = client.request("GET", target, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
        assert client.request("HEAD", target).body == b""


@pytest.mark.parametrize(
    "path", ["/ui/../handlers/info.py", "/ui/%2e%2e/__init__.py", "/ui/js", "/ui/js/", "/ui//etc/x"]
)
def test_what_is_no_file_of_the_page_is_not_found(client, path):
    answer = client.request("GET", path)
    if answer.status == 301:  # a path that is not clean leads out of the page
        answer = client.request("GET", answer.headers["location"])
    assert answer.status == 404


def test_the_page_asks_for_nothing_of_other_sites():
    for file in [*UI.glob("*"), *UI.glob("js/*")]:
        if file.is_file():
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert re.findall(r"https?://", text) == [], file.name
            assert "innerHTML" not in text, file.name
    assert not re.search(
        r"style=|onclick=|<script>", (UI / "index.html").read_text().replace("--", "")
    )


def test_what_is_of_others_is_what_the_list_says():
    listed = json.loads((UI / "vendor" / "vendor.json").read_text())
    names = {"vendor.json"}
    for entry in listed:
        names |= {entry["as"], f"{entry['name']}.LICENSE.txt"}
        data = (UI / "vendor" / entry["as"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert {path.name for path in (UI / "vendor").iterdir()} == names


def test_only_reads_are_answered(client):
    for path in ("/ui", "/ui/", "/ui/session.json"):
        assert client.request("POST", path, b"x").status == 405


def test_the_session_without_users(client):
    answer = client.request("GET", "/ui/session.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    received = answer.json
    assert len(received.pop("cluster")) > 8
    assert received == {
        "version": kvd.__version__,
        "name": "default",
        "auth": False,
        "user": None,
        "roles": [],
        "root": True,
        "cut": False,
        "read": ["/*"],
        "write": ["/*"],
        "readOnly": False,
    }


def test_the_session_shows_each_user_their_rights(fresh_server):
    client = fresh_server.client()
    ask_for_users(client)

    def session(headers: dict[str, str]) -> tuple[object, ...]:
        received = client.request("GET", "/ui/session.json", headers=headers).json
        return (
            received["user"],
            received["roles"],
            received["root"],
            received["read"],
            received["write"],
        )

    assert session({}) == (None, ["guest"], False, [], [])
    assert session(AL) == ("al", ["al"], False, ["/al/*"], ["/al/*"])
    assert session(ROOT) == ("root", ["root"], True, ["/*"], ["/*"])
    for name, password in (("al", "wrong"), ("none", "x")):
        answer = client.request("GET", "/ui/session.json", headers=basic(name, password))
        assert (answer.status, answer.json) == (401, {"message": "wrong user or password"})
        assert "www-authenticate" not in answer.headers


def test_a_role_of_many_patterns_is_not_listed_to_the_end(fresh_server):
    client = fresh_server.client()
    read = [f"/many/{number}" for number in range(1500)]
    ask_for_users(client)
    assert (
        client.request(
            "PUT",
            "/v2/auth/roles/al",
            json.dumps({"role": "al", "grant": {"kv": {"read": read, "write": []}}}),
            ROOT,
        ).status
        == 200
    )
    received = client.request("GET", "/ui/session.json", headers=AL).json
    assert (len(received["read"]), received["cut"]) == (1000, True)


def test_a_role_of_long_patterns_is_not_listed_to_the_end(fresh_server):
    client = fresh_server.client()
    ask_for_users(client)
    # The body of one request is limited; what is granted adds up.
    for first in (0, 4):
        read = [f"/{number}{'x' * 60_000}" for number in range(first, first + 4)]
        rights = json.dumps({"role": "al", "grant": {"kv": {"read": read, "write": []}}})
        assert client.request("PUT", "/v2/auth/roles/al", rights, ROOT).status == 200
    answer = client.request("GET", "/ui/session.json", headers=AL)
    assert (len(answer.body) < 300_000, answer.json["cut"]) == (True, True)


def test_the_status_has_samples_and_the_moment(fresh_server):
    client = fresh_server.client()
    for number in range(20):
        client.put("/a", number)
    received = client.request("GET", "/ui/status.json").json
    assert received["fields"] == list(FIELDS)
    assert len(received["latest"]) == len(FIELDS)
    latest = dict(zip(received["fields"], received["latest"], strict=True))
    assert latest["index"] == received["index"] == 21
    assert latest["writes"] > 0
    assert 0 < latest["fsync50"] <= latest["fsync99"]
    assert latest["log"] > 0
    assert latest["free"] > 0
    assert set(received["checks"]) == {"startup", "log", "space", "index", "damage", "shutdown"}
    assert received["store"]["sets"] == [20, 0]
    assert received["dataDir"] == str(fresh_server.data_dir.resolve())
    assert received["historyLimit"] == 1000
    assert client.request("GET", f"/ui/status.json?since={received['now']}").json["samples"] == []


@pytest.mark.parametrize("since", ["x", "nan", "inf"])
def test_a_bad_time_is_refused(client, since):
    assert client.request("GET", f"/ui/status.json?since={since}").status == 400


def test_the_place_of_the_data_is_for_root(fresh_server):
    client = fresh_server.client()
    ask_for_users(client)
    for headers, is_shown in (({}, False), (AL, False), (ROOT, True)):
        received = client.request("GET", "/ui/status.json", headers=headers).json
        assert ("dataDir" in received) is is_shown
    assert client.request("GET", "/ui/status.json", headers=basic("al", "x")).status == 401


@pytest.mark.parametrize("flags", [["--ui=off"], ["--extras=false"]])
def test_where_the_page_is_off_there_is_none(make_server, flags):
    client = make_server(*flags).start().client()
    for path in ("/ui", "/ui/", "/ui/session.json", "/ui/status.json", "/ui/app.css"):
        answer = client.request("GET", path)
        assert (answer.status, answer.body) == (404, b"404 page not found\n")
        assert "content-security-policy" not in answer.headers


def test_a_read_only_page_says_so_and_the_api_writes(make_server):
    client = make_server("--ui=read-only").start().client()
    assert client.request("GET", "/ui/session.json").json["readOnly"] is True
    assert client.put("/a", 1).status == 201


def test_files_of_the_page_have_a_type():
    """A file without one would not be served, and not be missed."""
    suffixes = {path.suffix for path in UI.rglob("*") if path.is_file()}
    assert suffixes == {".html", ".css", ".js", ".mjs", ".svg", ".json", ".txt"}
