"""The log: one event is one line, in both formats, whatever clients have sent."""

import json
import logging
import re
import sys
import time

import pytest

from kvd import logs
from tests.monitoring.test_metrics import scrape
from tests.support.guarded import AL, ROOT, ask_for_users
from tests.support.log_texts import log_text
from tests.support.raw import Raw, request
from tests.support.server import PATIENCE_S, run_kvd

HOSTILE = [
    "a\r\n2026-01-01 00:00:00,000 CRITICAL forged",
    "\x1b[2J\x1b]0;title\x07",
    "right-to-left \u202e override, \u2028 line, \x85 next line, \x00 nul",
    "\ud800 half a pair",
]


def record(message: str, *args: object, **options: object) -> logging.LogRecord:
    made = logging.LogRecord("kvd.x", logging.WARNING, "x.py", 1, message, args, None)
    made.__dict__.update(options)
    return made


@pytest.mark.parametrize("text", HOSTILE, ids=["lines", "terminal", "unicode", "surrogate"])
def test_hostile_text_is_one_printable_line_of_text(text):
    line = logs.TextFormatter().format(record("host %s is unknown", text))
    assert line.isprintable()
    assert "WARNING host " in line


@pytest.mark.parametrize("text", HOSTILE, ids=["lines", "terminal", "unicode", "surrogate"])
def test_hostile_text_is_one_line_of_json_and_comes_back(text):
    line = logs.JsonFormatter().format(record("host %s", text))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["msg"] == f"host {text}"


def test_plain_text_is_left_as_it_is():
    text = "/srv/bär: mode 0755 made 0700 \\ 100 %"
    assert logs.TextFormatter().format(record("%s", text)).endswith(f" WARNING {text}")


def test_no_line_of_a_traceback_looks_like_an_event():
    try:
        int("x\n2026-01-01 00:00:00,000 CRITICAL forged\r\x1b[2J")
    except ValueError as error:
        error.add_note("a note\n2026-01-01 00:00:00,000 CRITICAL forged\r\x1b[2J")
        failed = record("it failed", exc_info=sys.exc_info())
    first, *others = logs.TextFormatter().format(failed).split("\n")
    assert first.endswith(" WARNING it failed")
    assert len(others) > 2
    assert all(line.startswith("  | ") and line.isprintable() for line in others)
    (line,) = logs.JsonFormatter().format(failed).splitlines()
    assert "ValueError" in json.loads(line)["exception"]


def test_json_has_the_names_of_structured_logs():
    line = logs.JsonFormatter().format(record("m %d", 1, fields={"remote": "::1"}))
    shown = json.loads(line)
    assert shown.pop("ts").endswith("Z")
    assert shown == {"level": "warning", "logger": "kvd.x", "msg": "m 1", "remote": "::1"}


def test_what_comes_too_often_is_counted_instead():
    limit = logs.RateLimit(3600)
    assert limit.allow()
    assert limit.suppressed() == ""
    assert not limit.allow()
    assert not limit.allow()
    assert limit.suppressed() == " (2 more since the last such line)"
    assert logs.RateLimit(0).allow()


def test_the_whole_log_of_a_run_is_json_on_request(make_server):
    server = make_server("--log-format", "json").start()
    server.terminate()
    events = [json.loads(line) for line in server.stderr.splitlines()]
    assert {"level", "ts", "logger", "msg"} <= set.intersection(*(set(e) for e in events))
    assert any(e["msg"].startswith("listening on http://") for e in events)
    assert events[-1]["msg"].startswith(log_text("stopped at index"))


def test_an_unknown_format_is_refused():
    run = run_kvd("--log-format", "xml")
    assert run.returncode == 64
    assert run.stderr == 'kvd: --log-format: expected one of text, json, found "xml"\n'


def access_lines(server) -> list[str]:
    return [line.split(" INFO ", 1)[1] for line in server.stderr.splitlines() if " bytes " in line]


def test_each_request_is_a_line_of_the_access_log(make_server):
    server = make_server("--access-log").start()
    with Raw(server.port) as raw:
        raw.ask("PUT", "/v2/keys/a?x=1", "User-Agent: me/1", body=b"value=1")
        raw.ask("GET", "/version")
        raw.ask("HEAD", "/v2/keys/none")
        raw.send(request("GET", "/v2/keys/a?wait=true") + b"BAD\r\n\r\n")
        raw.head()
        server.client().put("/a", 2)
        list(raw.chunks())
        assert raw.answer().status == 400
    server.wait_for_log(" 400 ")
    lines = access_lines(server)
    assert [line.split(" bytes")[0].rpartition(" ")[0] for line in lines[:3]] == [
        '127.0.0.1 "PUT /v2/keys/a?x=1 HTTP/1.1" 201',
        '127.0.0.1 "GET /version HTTP/1.1" 200',
        '127.0.0.1 "HEAD /v2/keys/none HTTP/1.1" 404',
    ]
    # The write may be told before or after the watch that sees it.
    assert sorted(line.split(" bytes")[0].rpartition(" ")[0] for line in lines[3:5]) == [
        '127.0.0.1 "GET /v2/keys/a?wait=true HTTP/1.1" 200',
        '127.0.0.1 "PUT /v2/keys/a HTTP/1.1" 200',
    ]
    assert lines[5].startswith('127.0.0.1 "-" 400 ')
    assert lines[0].endswith(' ms "me/1"')


def test_hostile_requests_break_no_line_of_the_access_log(make_server):
    server = make_server("--access-log").start()
    agent = 'User-Agent: \xe2\x80\xa8 \x85 \xe2\x80\xae " 200 0 bytes'
    with Raw(server.port) as raw:
        raw.ask("GET", '/v2/keys/%0a%0d\xe2\x80\xa8\x85\x9b2J\xff"', agent)
        raw.ask("GET", "/v2/keys/" + "x" * 5000)
    server.wait_for_log("...")
    odd, long = access_lines(server)
    assert odd.isprintable()
    assert r"%0a%0d\u2028\x85\x9b2J\xff\"" in odd
    assert r"\u2028 \x85 \u202e \" 200 0 bytes" in odd
    assert len(long) < 1200


def test_what_a_client_sends_cannot_end_a_field_of_the_access_log(make_server):
    server = make_server("--access-log", "--log-outputs", "stderr").start()
    with Raw(server.port) as raw:
        raw.ask("GET", '/v2/keys/a\\"200"x\\', 'User-Agent: \\" \\\\" \\x1b \xff')
        raw.ask("GET", "/v2/keys/next")
    server.wait_for_log("/v2/keys/next")
    (line, _) = access_lines(server)
    # Between two quotes each backslash begins an escape, and no quote is without one.
    text = r'"((?:[^"\\]|\\["\\]|\\x[0-9a-f]{2}|\\u[0-9a-f]{4})*)"'
    found = re.fullmatch(rf"127\.0\.0\.1 {text} 404 \d+ bytes [0-9.]+ ms {text}", line)
    assert found is not None, line
    assert found[1] == r"GET /v2/keys/a\\\"200\"x\\ HTTP/1.1"
    assert found[2] == r"\\\" \\\\\" \\x1b \xff"


def test_a_client_that_leaves_is_logged(make_server):
    server = make_server("--access-log", "--log-format", "json").start()
    server.watch("/left").close()
    server.wait_for_log("wait=true")
    line = next(line for line in server.stderr.splitlines() if "wait=true" in line)
    shown = json.loads(line)
    own = {"remote", "request", "status", "bytes", "ms", "agent"}
    assert shown.keys() == {"level", "ts", "logger", "msg"} | own
    assert shown["request"] == "GET /v2/keys/left?wait=true HTTP/1.1"
    assert (shown["logger"], shown["status"], shown["remote"]) == ("kvd.access", 200, "127.0.0.1")


def test_no_request_is_logged_unasked(make_server):
    server = make_server().start()
    server.client().put("/a", 1)
    server.terminate()
    assert "/v2/keys" not in server.stderr


def test_the_level_can_be_changed_while_it_runs(make_server):
    server = make_server()

    def stop_is_logged(*bodies: str) -> bool:
        """Whether a server that was sent these levels tells of its stop, which it does at INFO."""
        client = server.start().client()
        for body in bodies:
            assert client.request("PUT", "/config/local/log", body).status == 204
        before = server.stderr.count(log_text("stopped at index"))
        server.terminate()
        return server.stderr.count(log_text("stopped at index")) > before

    assert stop_is_logged()
    assert not stop_is_logged('{"Level":"WARNING"}')
    assert stop_is_logged('{"Level":"WARNING"}', '{"Level":"info"}')


def test_the_level_is_roots_to_change_and_the_audit_is_logged_at_every_level(make_server):
    server = make_server().start()
    client = server.client()
    level, warning = "/config/local/log", '{"Level":"CRITICAL"}'
    assert client.request("PUT", level, warning).status == 204
    ask_for_users(client)
    for headers in ({}, AL, {"Authorization": "Basic eDp5"}):
        refused = client.request("PUT", level, '{"Level":"DEBUG"}', headers)
        assert (refused.status, refused.json) == (401, {"message": "Insufficient credentials"})
        assert "x-etcd-cluster-id" not in refused.headers
    assert client.request("GET", level).status == 405
    assert client.request("PUT", level, warning, ROOT).status == 204
    body = '{"user":"late","password":"secret","roles":["root"]}'
    assert client.request("PUT", "/v2/auth/users/late", body, ROOT).status < 300
    assert server.terminate() == 0
    lines = [line.split(" ", 2)[2] for line in server.stderr.splitlines()]
    first = lines.index(f"INFO PUT {level} CRITICAL, asked for by anybody")
    assert all("asked for by" in line for line in lines[first:])
    assert lines[-2:] == [
        f"INFO PUT {level} CRITICAL, asked for by user 'root'",
        "INFO PUT /v2/auth/users/late, asked for by user 'root'",
    ]


def test_a_level_that_is_none_is_refused(make_server):
    client = make_server().start().client()
    refused = client.request("PUT", "/config/local/log", '{"Level":"bogus"}')
    assert (refused.status, refused.json) == (400, {"message": "Invalid log level bogus"})
    refused = client.request("PUT", "/config/local/log", "Level=DEBUG")
    assert (refused.status, refused.json) == (400, {"message": "Invalid json body"})


def test_slow_writes_are_counted_and_logged_now_and_then(make_server):
    slow = ("--enable-failpoints", "--failpoint", "walBeforeSync=delay:0.1")
    server = make_server("--slow-request-s", "0.05", *slow).start()
    client = server.client()
    for number in range(4):
        assert client.put("/a", number).status in (200, 201)
    assert scrape(client)["kvd_slow_requests_total"] == 4
    server.terminate()
    assert len(re.findall(r" WARNING slow: 1 writes took up to [0-9.]+ s", server.stderr)) == 1


def test_the_log_goes_where_it_is_sent_and_follows_a_file_that_is_renamed(make_server, tmp_path):
    path = tmp_path / "kvd.log"
    server = make_server("--log-outputs", f"stderr,{path}", "--access-log").start()
    client = server.client()
    assert client.request("GET", "/v2/keys/first").status == 404
    # Each output has a thread of its own, so what one has got says nothing of the other.
    deadline = time.monotonic() + PATIENCE_S
    while "/v2/keys/first" not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    path.rename(tmp_path / "kvd.log.1")
    assert client.request("GET", "/v2/keys/second").status == 404
    server.terminate()
    before, after = ((tmp_path / name).read_text() for name in ("kvd.log.1", "kvd.log"))
    assert "/v2/keys/first" in before
    assert "/v2/keys/second" in after
    assert before + after == server.stderr


def test_a_file_of_the_log_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    path = tmp_path / "missing" / "kvd.log"
    ended = run_kvd("--data-dir", str(tmp_path / "data"), "--log-outputs", str(path))
    assert ended.returncode == 64
    assert ended.stderr == f"kvd: --log-outputs: {path}: No such file or directory\n"
