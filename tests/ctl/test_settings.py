"""How kvdctl finds its server and its user: flags, variables, profiles, sockets, TLS, passwords."""

import os
import re
import signal
import subprocess
import sys
import tempfile

import pytest

from kvd.ctl.credentials import of_profile
from kvd.ctl.failures import Failure
from kvd.ctl.goflags import seconds
from kvd.ctl.settings import Settings
from kvd.ctl.table import MOVING, OF_KEYS, OF_KVDCTL
from tests.support.certs import Authority
from tests.support.server import ROOT, Server, free_port, running

PROFILE = """
default = "lab"
[profiles.lab]
endpoints = ["{url}"]
[profiles.none]
endpoints = ["http://127.0.0.1:1"]
"""


@pytest.fixture(scope="module", autouse=True)
def key(server):
    server.client().put("/a", "x")


@pytest.fixture
def profiles(tmp_path):
    def write(text, mode=0o600):
        directory = tmp_path / "config" / "kvdctl"
        directory.mkdir(parents=True)
        (directory / "config.toml").write_text(text)
        (directory / "config.toml").chmod(mode)

    return write


def test_a_flag_wins_over_variables_and_these_over_the_profile(
    kvdctl, own_environment, server, profiles
):
    profiles(PROFILE.format(url=server.url))
    assert kvdctl("get", "/a") == (0, "x\n", "")
    assert kvdctl("--profile", "none", "get", "/a")[0] == 2
    own_environment.setenv("ETCDCTL_PEERS", "http://127.0.0.1:1")
    assert kvdctl("get", "/a")[0] == 2
    own_environment.setenv("KVDCTL_ENDPOINTS", server.url)
    assert kvdctl("get", "/a") == (0, "x\n", "")
    own_environment.setenv("KVDCTL_ENDPOINTS", "http://127.0.0.1:1")
    assert kvdctl("get", "/a")[0] == 2
    for flag in ("--endpoints", "--endpoint", "--peers", "-C", "-endpoints"):
        assert kvdctl(flag, server.url, "get", "/a") == (0, "x\n", "")
    assert kvdctl("get", "/a", f"--endpoints={server.url}") == (0, "x\n", "")
    assert kvdctl("-C", server.url.removeprefix("http://"), "get", "/a") == (0, "x\n", "")


def test_the_first_endpoint_that_answers_is_used(kvdctl, server):
    assert kvdctl("-C", f"http://127.0.0.1:{free_port()},{server.url}", "get", "/a")[0] == 0


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[profiles.x]", "no profile 'lab' in"),
        ("[profiles.lab]\nendpoint = 'a'", "endpoint: unknown setting"),
        ("[profiles.lab]\nendpoints = 'a'", "endpoints: expected a list of strings"),
        ("[profiles.lab]\nusername = 1", "username: expected a string"),
        ("profile = 1", "unknown entry 'profile'"),
        ("[", "at end of document"),
        ("x = " + "[" * 3000, "recursion"),
        ("x = " + "9" * 5000, "4300 digits"),
        (
            "[profiles.lab]\nca-file = '\\u0000'".replace("'", '"'),
            "ca-file: it has a character NUL",
        ),
    ],
)
def test_a_bad_profile_is_refused_in_one_line(kvdctl, profiles, text, names):
    profiles(text)
    status, out, err = kvdctl("--profile", "lab", "get", "/a")
    assert (status, out) == (1, "")
    assert err.startswith("kvdctl: ")
    assert names in err
    assert err.count("\n") == 1


def test_a_profile_that_is_not_there_is_refused(kvdctl):
    status, _, err = kvdctl("--profile", "lab", "get", "/a")
    assert (status, err.startswith("kvdctl: no profile 'lab'")) == (1, True)


@pytest.mark.parametrize(
    ("text", "value"),
    [("2s", 2), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("0", 0), (".5s", 0.5)],
)
def test_durations_are_those_of_go(text, value):
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "s",
        "2x",
        "-1s",
        "2s ",
        "inf",
        "nan",
        "1e308s",
        "9" * 400,
        "1s" + "1" * 9999,
        "9999999h",
    ],
)
def test_what_is_no_duration_is_refused(kvdctl, text):
    status, _, err = kvdctl("--timeout", text, "get", "/a")
    assert (status, err.count("\n")) == (1, 1)


# The user.


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A server that wants a user: root with the password `s3cret`."""
    for server in running(Server(tmp_path_factory.mktemp("closed"))):
        client = server.client()
        client.put("/a", "x")
        json = {"Content-Type": "application/json"}
        for path, body in (
            ("/v2/auth/users/root", '{"user":"root","password":"s3cret"}'),
            ("/v2/auth/enable", ""),
        ):
            assert client.request("PUT", path, body, json).status in (200, 201)
        headers = {"Authorization": "Basic cm9vdDpzM2NyZXQ="}
        body = '{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}'
        assert client.request("PUT", "/v2/auth/roles/guest", body, json | headers).status == 200
        yield server


def test_the_password_comes_with_the_name_or_from_a_file(kvdctl, closed, tmp_path, own_environment):
    at = ("--endpoints", closed.url)
    denied = "110: The request requires user authentication (Insufficient credentials) [0]"
    assert kvdctl(*at, "get", "/a") == (4, "", f"Error:  {denied}\n")
    assert kvdctl(*at, "-u", "root:s3cret", "get", "/a") == (0, "x\n", "")
    assert kvdctl(*at, "-u", "root:wrong", "get", "/a")[0] == 4
    (tmp_path / "password").write_text("s3cret\n")
    file = ("--password-file", str(tmp_path / "password"))
    assert kvdctl(*at, "-u", "root", *file, "get", "/a") == (0, "x\n", "")
    missing = ("--password-file", "/nope")
    refused = (1, "", "kvdctl: /nope: No such file or directory\n")
    assert kvdctl(*at, "-u", "root", *missing, "get", "/a") == refused
    own_environment.setenv("ETCDCTL_USERNAME", "root:s3cret")
    assert kvdctl(*at, "get", "/a") == (0, "x\n", "")


def test_the_password_of_a_profile_is_its_own_users_alone(kvdctl, closed, profiles):
    common = f'[profiles.p]\nendpoints = ["{closed.url}"]\nusername = "root"\n'
    profiles(common + 'password = "s3cret"')
    assert kvdctl("--profile", "p", "get", "/a") == (0, "x\n", "")
    found = Settings({"profile": "p", "username": "al"})
    assert of_profile(found.profile, "al") is None


def test_a_password_that_others_can_read_is_refused(kvdctl, profiles):
    profiles('[profiles.p]\npassword = "s3cret"', mode=0o644)
    status, _, err = kvdctl("--profile", "p", "get", "/a")
    assert status == 1
    assert "other users can read it: chmod 600 it" in err


def test_a_command_gives_the_password(kvdctl, closed, profiles):
    text = f'[profiles.p]\nendpoints = ["{closed.url}"]\nusername = "root"\n'
    profiles(text + 'password-command = ["sh", "-c", "echo s3cret"]')
    assert kvdctl("--profile", "p", "get", "/a") == (0, "x\n", "")


def test_without_a_terminal_no_password_is_asked_for(server, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "kvd.ctl.main", "-C", server.url, "-u", "al", "get", "/a"],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    words = "kvdctl: -u al needs a password, and there is no terminal to ask on\n"
    assert ended.stderr == words


# The way to the server.


@pytest.fixture
def socket_path():
    """A path that is short enough for a socket, however deep pytest's directories are."""
    with tempfile.TemporaryDirectory() as directory:
        yield f"{directory}/kvd.sock"


def test_a_socket_in_the_file_system(kvdctl, make_server, socket_path):
    server = make_server(listen=f"unix://{socket_path}").start()
    at = ("-C", f"unix://{socket_path}")
    assert kvdctl(*at, "get", "/a")[2] == "Error:  100: Key not found (/a) [1]\n"
    server.terminate()
    status, _, err = kvdctl(*at, "get", "/a")
    assert status == 2
    assert f"dial unix {socket_path}: connect: " in err


def test_tls_with_an_authority_and_a_client_certificate(kvdctl, make_server, tmp_path):
    authority = Authority(tmp_path / "authority")
    own = authority.sign("server", "127.0.0.1")
    server = make_server(
        *("--cert-file", str(own.cert), "--key-file", str(own.key)),
        *("--trusted-ca-file", str(authority.cert), "--client-cert-auth"),
        listen="https://127.0.0.1:0",
    ).start()
    pair = authority.sign("root")
    certificate = ("--cert-file", str(pair.cert), "--key-file", str(pair.key))
    at = ("--endpoints", server.url, "--ca-file", str(authority.cert))
    not_there = (4, "", "Error:  100: Key not found (/a) [1]\n")
    assert kvdctl(*at, *certificate, "get", "/a") == not_there
    assert kvdctl(*at, "get", "/a")[0] == 2
    status, _, err = kvdctl("--endpoints", server.url, *certificate, "get", "/a")
    assert status == 2
    assert "certificate verify failed" in err


@pytest.mark.parametrize("flag", ["--ca-file", "--cert-file", "--key-file"])
def test_a_certificate_that_cannot_be_read_is_named(kvdctl, flag):
    ended = kvdctl(flag, "/nope", "get", "/a")
    assert ended == (1, "", "open /nope: no such file or directory\n")


# How a call ends.


def test_no_server_is_status_2_and_without_sync_4(kvdctl):
    port = free_port()
    line = f"error #0: dial tcp 127.0.0.1:{port}: connect: connection refused\n"
    text = f"Error:  client: etcd cluster is unavailable or misconfigured; {line}\n{line}\n"
    at = ("-C", f"127.0.0.1:{port}")
    assert kvdctl(*at, "get", "/a") == (2, "", text)
    assert kvdctl(*at, "--no-sync", "get", "/a") == (4, "", text)


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (["nosuch"], 3, "No help topic for 'nosuch'"),
        (["gte"], 3, "No help topic for 'gte'; did you mean 'get'\\?"),
        (["get", "--quorm", "/a"], 1, "kvdctl: No such .*; did you mean '--quorum'\\?; see .*"),
        (["get"], 1, "Error:  key required"),
        (
            ["get", "--no", "/a"],
            1,
            "kvdctl: No such option.*; see `kvdctl get --help`",
        ),
        (["set", "--nosuch", "/a", "v"], 1, "kvdctl: No such option.*--nosuch.*"),
        (["set", "/a", "v", "--swap-with-indx", "1"], 1, "kvdctl: No such option.*"),
        (["set", "/a", "v", "--ttl"], 1, "kvdctl: Option '--ttl' requires an argument; see .*"),
        (["set", "/a", "v", "--ttl", "0x"], 1, "kvdctl: Invalid value for '--ttl': '0x' is .*"),
        (
            ["set", "/a", "v", "--ttl", "9" * 99],
            1,
            "kvdctl: .*9 has more than 64 bits; .*",
        ),
        (["ls", "-r=", "/"], 1, "kvdctl: Option '-r': expected true or false, got ''; see .*"),
        (["top", "--interval", "inf"], 1, "kvdctl: .*"),
        (["top", "--interval", "nan"], 1, "kvdctl: .*"),
        (["apply", "f", "--wait", "inf"], 1, "kvdctl: .*'inf' is no number of seconds; see .*"),
        (["lock", "/l", "--ttl", "9" * 19, "true"], 1, "kvdctl: .*"),
        (["-C", "http://\udcff", "get", "/a"], 1, "kvdctl: expected the name of a host, .*"),
        (["-C", "a" * 64, "get", "/a"], 1, "kvdctl: expected the name of a host, .*"),
        (
            ["-C", "127.0.0.1:1", "tree"],
            2,
            "kvdctl: .*: Connection refused; --endpoints .* servers",
        ),
        (
            ["exec-watch", "--nosuch", "/w", "--", "x"],
            1,
            "kvdctl: exec-watch: there is no flag --nosuch",
        ),
        (["-u", "al:\udcff", "get", "/a"], 1, "kvdctl: -u: name and password are UTF-8"),
        (["user", "get", "\udcff"], 1, r"kvdctl: \\udcff: it is no UTF-8"),
        (["user", "add", "al:\udcff"], 1, "kvdctl: a name, password or URL is no UTF-8"),
        (["role", "add", "\udcff"], 1, r"kvdctl: \\udcff: it is no UTF-8"),
        (["role", "grant", "r", "--rw", "--path", "/\udcff"], 1, "kvdctl: a name, password or .*"),
        (["member", "update", "\udcff", "http://h"], 1, r"kvdctl: \\udcff: it is no UTF-8"),
        (["--nosuch"], 1, "kvdctl: No such option.*--nosuch.*; see `kvdctl --help`"),
        (["-C", "ftp://h", "get", "/a"], 1, "kvdctl: expected http://HOST:PORT, .*: ftp://h"),
    ],
)
def test_a_wrong_command_line_is_one_line(kvdctl, argv, status, text):
    found, out, err = kvdctl(*argv)
    assert (found, out) == (status, "")
    assert re.fullmatch(text + "\n", err)


def test_the_help_of_each_verb_fits_a_terminal_and_has_tested_examples(kvdctl, own_environment):
    own_environment.setenv("COLUMNS", "80")
    manual = (ROOT / "kvd" / "manual" / "kvdctl.md").read_text()
    shown = {verb: kvdctl(verb, "--help")[1] for verb in [*OF_KVDCTL, *OF_KEYS, *MOVING]}
    assert {verb for verb, text in shown.items() if max(map(len, text.splitlines())) > 80} == set()
    examples = {
        line.strip() for text in shown.values() for line in text.splitlines() if "$ k" in line
    }
    assert len(examples) > 15
    assert [line for line in examples if f"\n    {line}\n" not in manual] == []
    assert "$ kvdctl role grant app --path" in kvdctl("role", "grant", "--help")[1]


def test_without_verb_it_is_the_help(kvdctl):
    status, out, err = kvdctl()
    assert (status, err) == (0, "")
    assert "Verbs of a server" in out
    assert kvdctl("--help") == (0, out, "")
    assert kvdctl("help", "get")[1] == kvdctl("get", "--help")[1] != ""


def test_a_bug_is_one_line_and_debug_shows_where(kvdctl, own_environment):
    def broken(*_, **__):
        raise ZeroDivisionError("by zero")

    own_environment.setattr("kvd.ctl.session.Operations", broken)
    text = "kvdctl: a bug: ZeroDivisionError: by zero (--debug shows where)\n"
    assert kvdctl("get", "/a") == (70, "", text)
    with pytest.raises(ZeroDivisionError):
        kvdctl("--debug", "get", "/a")


def test_debug_prints_requests_as_curl_does_them(ctl, server):
    status, out, err = ctl("--debug", "get", "/a")
    assert (status, out) == (0, "x\n")
    target = "/v2/keys/a?quorum=false&recursive=false&sorted=false"
    assert err == f"cURL Command: curl -X GET {server.url}{target}\n"


def test_get_imports_what_it_needs_and_no_more(server):
    code = (
        "import sys; from kvd.ctl.main import main; main(sys.argv[1:]);"
        "print(sorted(name for name in sys.modules if name.startswith('kvd.')))"
        ";print(*sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "-C", server.url, "get", "/a"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    value, _, modules = ended.stdout.splitlines()
    assert value == "x"
    heavy = {"kvd.storage", "lmdb", "tornado", "yaml", "asyncio", "ssl", "subprocess", "argparse"}
    heavy |= {"difflib", "pathlib", "tempfile", "getpass"}
    assert heavy & set(modules.split()) == set()


def test_settings_that_are_wrong_are_refused(kvdctl):
    with pytest.raises(Failure, match="expected a URL"):
        _ = Settings({"endpoints": " , "}, {}).endpoints
    assert kvdctl("-C", "unix://", "get", "/a")[0] == 1


def test_ctrl_c_while_it_starts_leaves_no_traceback():
    """During the imports SIGINT ends the process at once; later it is Ctrl-C of the verb."""
    script = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == interrupted:
            os.kill(os.getpid(), signal.SIGINT)
interrupted = sys.argv.pop(1)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
from kvd.ctl import run
run()
"""
    for module, status in (("kvd.ctl.table", -signal.SIGINT), ("kvd.ctl.etcdctl.values", 130)):
        ended = subprocess.run(
            [sys.executable, "-c", script, module, "get", "/a"],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        assert (ended.returncode, ended.stderr.strip()) == (status, b"")
