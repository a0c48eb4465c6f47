"""The flags of etcd, as in an old unit file, environment or tutorial: obeyed, ignored, refused."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kvd.config.config import Config
from kvd.config.etcd_flags import IGNORED, REFUSALS
from kvd.config.flags import FLAGS
from kvd.config.load import ConfigError, parse
from tests.support.server import PATIENCE_S

RECORDED = Path(__file__).with_name("etcd-3.4-flags.txt")
# Of etcd 2 and 0.4, and no more in 3.4's help.
OLDER = {
    "ca-file": "should",
    "addr": "should",
    "bind-addr": "should",
    "peer-addr": "ignore",
    "peer-bind-addr": "ignore",
    "peer-ca-file": "ignore",
    "experimental-v3demo": "ignore",
    "snapshot": "ignore",
    "cluster-active-size": "ignore",
    "v": "ignore",
    "peers": "refuse",
    "peers-file": "refuse",
}

IGNORED_ALONE = ("ignore", "peer")


def recorded() -> list[tuple[str, str, str]]:
    """Group, flag and default of each."""
    lines = [line for line in RECORDED.read_text().splitlines() if not line.startswith("#")]
    return [(*line.split(maxsplit=2), "")[:3] for line in lines]  # type: ignore[misc]


FLAGS_OF_ETCD = recorded()


def config(*argv: str, **environ: str) -> Config:
    parsed = parse(argv, environ)
    assert isinstance(parsed, Config)
    return parsed


def group(name: str) -> str:
    """What kvd does with a flag."""
    tables = {
        "follow": {flag.name for flag in FLAGS if not flag.may_have_value},
        "ignore": {flag.name for flag in IGNORED},
        # One has a meaning of kvd's own without a value, and is refused with etcd's.
        "refuse": {refusal.name for refusal in REFUSALS}
        | {flag.name for flag in FLAGS if flag.may_have_value},
    }
    (found,) = [kind for kind, names in tables.items() if name in names]
    return found


@pytest.mark.skipif(shutil.which("etcd") is None, reason="there is no etcd here")
def test_the_record_is_what_etcd_says():
    said = subprocess.run(
        ["etcd", "--help"], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    found = re.findall(r"^  --([a-z0-9-]+) ?'?([^'\n]*)", said.stdout + said.stderr, re.MULTILINE)
    if len(found) < len(FLAGS_OF_ETCD):
        pytest.skip("this etcd is not 3.4")
    assert [(name, default) for _, name, default in FLAGS_OF_ETCD] == found


@pytest.mark.parametrize(("expected", "name"), [flag[:2] for flag in FLAGS_OF_ETCD])
def test_each_flag_of_etcd_is_in_one_group(expected, name):
    followed = dict.fromkeys(("must", "should", "peer"), "follow")
    assert group(name) == followed.get(expected, expected)


@pytest.mark.parametrize(("name", "expected"), OLDER.items())
def test_older_names_are_known_too(name, expected):
    assert group(name) == {"should": "follow"}.get(expected, expected)


@pytest.mark.parametrize(
    ("expected", "name", "default"),
    [flag for flag in FLAGS_OF_ETCD if flag[1] not in ("enable-v2", "data-dir")],
)
def test_each_is_accepted_with_its_default(expected, name, default):
    variable = f"ETCD_{name.upper().replace('-', '_')}"
    if default in ("true", "false"):
        parsed = config(f"--{name}={default}")
    else:
        parsed = config(f"--{name}", default)
    warnings = [f"without effect here, ignored: --{name}"] if expected in IGNORED_ALONE else []
    assert list(parsed.warnings) == warnings
    from_environment = config(**{variable: default})
    if default:
        assert list(from_environment.warnings) == [
            w.replace(f"--{name}", variable) for w in warnings
        ]


def test_all_at_once_make_one_warning():
    argv = [f"--{name}={default}" for kind, name, default in FLAGS_OF_ETCD if kind in IGNORED_ALONE]
    (warning,) = config(*argv).warnings
    assert warning.count(" --") == len(argv)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("--discovery", "http://d"), "joins no cluster"),
        (("--discovery-srv", "example"), "joins no cluster"),
        (("--proxy", "on"), "kvd is no proxy"),
        (("--proxy", "readonly"), "kvd is no proxy"),
        (("--experimental-enable-v2v3", "/v2"), "kvd has no v3 store"),
        (("--peers", "10.0.0.1:7001"), "single member"),
        (("--peers-file", "peers"), "single member"),
        (("--enable-v2=false",), "the v2 API is all that kvd serves"),
        (("--initial-cluster", "default=http://a:1,b=http://b:1"), "single member"),
        (("--initial-cluster", "b=http://b:1"), "expected this member"),
    ],
    ids=str,
)
def test_what_a_single_member_cannot_do_is_refused_with_the_reason(argv, reason):
    with pytest.raises(ConfigError) as refused:
        parse(argv)
    assert str(refused.value).startswith(argv[0].partition("=")[0])
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["a=http://h:1,", ",a=http://h:1", "a=http://h:1,,a=http://h:2", ","]
)
def test_a_cluster_of_this_member_alone_may_have_empty_places(text):
    assert config("--name", "a", "--initial-cluster", text).warnings == ()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), "text"),
        (("--logger", "zap"), "json"),
        (("--logger", "capnslog"), "text"),
        (("--logger", "zap", "--log-format", "text"), "text"),
    ],
    ids=str,
)
def test_etcds_loggers_are_formats_of_the_log(argv, expected):
    assert config(*argv).log_format == expected


# Installations that are there: nothing about them is changed.

# Debian's etcd.service; /etc/default/etcd has comments only.
DEBIAN = {"DAEMON_ARGS": "", "ETCD_NAME": "host", "ETCD_DATA_DIR": "{data}"}
# The usual line of tutorials about Patroni, of CoreOS' unit, and of an image's documentation.
TUTORIALS = {
    "patroni": """--name etcd1 --data-dir {data}
        --listen-client-urls {listen} --advertise-client-urls http://127.0.0.1:2379
        --listen-peer-urls http://0.0.0.0:2380 --initial-advertise-peer-urls http://127.0.0.1:2380
        --initial-cluster etcd1=http://127.0.0.1:2380 --initial-cluster-state new
        --initial-cluster-token etcd-cluster --enable-v2""",
    "single dashes": """-name infra0 -data-dir {data} -initial-cluster-state=new
        -initial-advertise-peer-urls http://10.0.1.10:2380 -listen-peer-urls http://10.0.1.10:2380
        -listen-client-urls {listen} -advertise-client-urls http://10.0.1.10:2379
        -initial-cluster-token etcd-cluster-1 -initial-cluster infra0=http://10.0.1.10:2380
        -heartbeat-interval 100 -election-timeout 1000 -snapshot-count 10000 -max-wals 5""",
    "zap": """--name=node --data-dir={data} --listen-client-urls={listen}
        --advertise-client-urls=http://node:2379 --enable-v2=true --logger=zap
        --log-outputs=stderr --auto-compaction-retention=1 --quota-backend-bytes=8589934592
        --max-request-bytes=33554432 --log-level=info --strict-reconfig-check""",
}

# What tutorials about Patroni have for /etc/default/etcd, the comma at the end included.
PATRONI = """
ETCD_NAME=etcd1
ETCD_DATA_DIR={data}
ETCD_LISTEN_PEER_URLS=http://127.0.0.1:2380
ETCD_LISTEN_CLIENT_URLS=http://localhost:0
ETCD_INITIAL_ADVERTISE_PEER_URLS=http://127.0.0.1:2380
ETCD_INITIAL_CLUSTER=etcd1=http://127.0.0.1:2380,
ETCD_ADVERTISE_CLIENT_URLS=http://127.0.0.1:2379
ETCD_INITIAL_CLUSTER_TOKEN=cluster1
ETCD_INITIAL_CLUSTER_STATE=new
ETCD_ENABLE_V2=true
"""


def test_an_environment_of_tutorials_starts_without_a_change(make_server, tmp_path):
    lines = PATRONI.format(data=tmp_path / "data").split("\n")[1:-1]
    server = make_server(environment=dict(line.split("=", 1) for line in lines))
    server.start_as()
    assert server.client().put("/a", "1").status == 201
    warnings = [line for line in server.stderr.splitlines() if "WARN" in line]
    assert len(warnings) == 1
    assert "ignored: ETCD_LISTEN_PEER_URLS" in warnings[0]


def test_debians_unit_starts_without_a_change(make_server, tmp_path):
    environment = {name: text.format(data=tmp_path / "data") for name, text in DEBIAN.items()}
    # Its default port may be taken here; nothing else is added.
    environment["ETCD_LISTEN_CLIENT_URLS"] = "http://127.0.0.1:0"
    server = make_server(environment=environment)
    server.start_as()
    client = server.client()
    assert client.put("/a", "1").status == 201
    assert client.request("GET", "/v2/members").json["members"][0]["name"] == "host"
    assert (tmp_path / "data" / "FORMAT").exists()
    assert "WARNING" not in server.stderr


@pytest.mark.parametrize("name", TUTORIALS)
def test_flags_of_tutorials_start_without_a_change(make_server, tmp_path, name):
    text = TUTORIALS[name].format(data=tmp_path / "data", listen="http://127.0.0.1:0")
    server = make_server()
    server.start_as(*text.split())
    assert server.client().put("/a", "1").status == 201
    warnings = [line for line in server.stderr.splitlines() if "WARN" in line.upper()]
    assert len(warnings) <= 1
