"""The command line: what each flag means, and one clear line for each that cannot be followed."""

from pathlib import Path

import pytest

from kvd import __version__
from kvd.config.config import Config
from kvd.config.flags import FLAGS
from kvd.config.help import help_text
from kvd.config.load import ConfigError, ListenUrl, Printout, parse
from tests.support.configuration import config


def test_defaults():
    assert config() == Config(
        name="default",
        listen=(ListenUrl("127.0.0.1", 2379),),
        advertise=("http://127.0.0.1:2379",),
        listen_metrics=(),
        peer_urls=("http://localhost:2380",),
        cluster_token=None,
        must_exist=False,
        replicate=None,
        data_dir=Path("default.etcd"),
        wal_dir=None,
        snapshot_count=None,
        snapshots_kept=2,
        event_history_limit=1000,
        event_history_bytes=256 << 20,
        wal_segment_bytes=64 * 1024 * 1024,
        wal_sync="auto",
        rebuild_index=False,
        allow_network_fs=False,
        extras=True,
        ui="on",
        gzip_min_bytes=None,
        discovery=False,
        discovery_ttl_s=604_800,
        discovery_max=10_000,
        max_header_bytes=65536,
        max_body_bytes=10 << 20,
        max_value_bytes=10 << 20,
        max_key_depth=4096,
        max_connections=None,
        max_watchers=None,
        max_watchers_per_key=None,
        max_wait_s=None,
        max_stream_bytes=1 << 20,
        max_buffered_bytes=256 << 20,
        max_response_bytes=None,
        idle_timeout_s=3600.0,
        header_timeout_s=30.0,
        body_timeout_s=60.0,
        write_timeout_s=60.0,
        failpoints=(),
        log_level="INFO",
        log_outputs=("stderr",),
        log_format="text",
        access_log=False,
        slow_request_s=1.0,
        tls=None,
        cors=(),
        host_whitelist=None,
        warnings=(),
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--name", "infra0"],
        ["-name", "infra0"],
        ["--name=infra0"],
        ["-name=infra0"],
        ["--name", "first", "--name=infra0"],
    ],
    ids=" ".join,
)
def test_a_value_is_given_in_each_of_gos_ways(argv):
    assert config(*argv).name == "infra0"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--rebuild-index"], True),
        (["-rebuild-index"], True),
        *[([f"--rebuild-index={text}"], True) for text in ("1", "t", "T", "TRUE", "true", "True")],
        *[
            ([f"--rebuild-index={text}"], False)
            for text in ("0", "f", "F", "FALSE", "false", "False")
        ],
        (["--rebuild-index", "--rebuild-index=false"], False),
    ],
    ids=str,
)
def test_a_switch_takes_gos_words_for_truth(argv, expected):
    assert config(*argv).rebuild_index is expected


def test_a_switch_does_not_take_the_next_word():
    with pytest.raises(ConfigError, match='"false" is no flag'):
        parse(["--rebuild-index", "false"])


@pytest.mark.parametrize(
    ("argv", "field", "expected"),
    [
        (["--data-dir", "/var/lib/kvd"], "data_dir", Path("/var/lib/kvd")),
        (["--data-dir=a=b"], "data_dir", Path("a=b")),
        (["--wal-dir", "w"], "wal_dir", Path("w")),
        (["--name", "infra0"], "data_dir", Path("infra0.etcd")),
        (["--data-dir=", "--name", "infra0"], "data_dir", Path("infra0.etcd")),
        (["--name", "Knoten-ä"], "name", "Knoten-ä"),
        (
            ["--initial-advertise-peer-urls", "http://a:1,http://b:2"],
            "peer_urls",
            ("http://a:1", "http://b:2"),
        ),
        (["--initial-cluster-token", "t"], "cluster_token", "t"),
        (["--initial-cluster-state", "existing"], "must_exist", True),
        (["--debug"], "log_level", "DEBUG"),
        (["--debug", "--log-level=error"], "log_level", "DEBUG"),
        (["--debug=false"], "log_level", "INFO"),
        (["--addr", "10.0.0.1:4001"], "advertise", ("http://10.0.0.1:4001",)),
        (["--bind-addr", "0.0.0.0:4001"], "listen", (ListenUrl("0.0.0.0", 4001),)),
        (["--name", "-x"], "name", "-x"),
        (["--snapshot-count", "10000"], "snapshot_count", 10000),
        (["--max-snapshots", "5"], "snapshots_kept", 5),
        (["--max-snapshots", "0"], "snapshots_kept", None),
        (["--event-history-limit", "1"], "event_history_limit", 1),
        (["--event-history-bytes", "1"], "event_history_bytes", 1),
        (["--wal-segment-bytes", "65536"], "wal_segment_bytes", 65536),
        (["--wal-sync", "thread"], "wal_sync", "thread"),
        (["--max-header-bytes", "1024"], "max_header_bytes", 1024),
        (["--max-connections", "10"], "max_connections", 10),
        (["--max-watchers", "007"], "max_watchers", 7),
        (["--idle-timeout-s", "0.5"], "idle_timeout_s", 0.5),
        (["--header-timeout-s", "1"], "header_timeout_s", 1.0),
        (["--body-timeout-s", "1e1"], "body_timeout_s", 10.0),
        (["--log-format", "json"], "log_format", "json"),
        (["--access-log"], "access_log", True),
        (["--log-outputs", "stdout,/var/log/kvd"], "log_outputs", ("stdout", "/var/log/kvd")),
        (["--log-outputs", "default"], "log_outputs", ("stderr",)),
        (["--log-level", "debug"], "log_level", "DEBUG"),
        (["--log-level", "warn"], "log_level", "WARNING"),
        (["--log-level", "fatal"], "log_level", "CRITICAL"),
        (["--host-whitelist", "a, b.example"], "host_whitelist", ("a", "b.example")),
        (["--host-whitelist="], "host_whitelist", ()),
        (["--cors", "*"], "cors", ("*",)),
        (["--cors", "http://a:80, https://b"], "cors", ("http://a:80", "https://b")),
    ],
    ids=str,
)
def test_each_flag_sets_its_field(argv, field, expected):
    assert getattr(config(*argv), field) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["kvd"], '"kvd" is no flag; see kvd --help'),
        (["-"], '"-" is no flag; see kvd --help'),
        (["--"], '"--" is no flag; see kvd --help'),
        (["---name=x"], '"---name=x" is no flag; see kvd --help'),
        (["--data-dri", "x"], 'unknown flag "--data-dri"; did you mean --data-dir?'),
        (["--qqqq"], 'unknown flag "--qqqq"; see kvd --help'),
        (["--nam=x"], 'unknown flag "--nam"; did you mean --name?'),
        (["--name"], "--name needs a value: --name NAME"),
        (
            ["--data-dir", "--rebuild-index"],
            "--data-dir needs a value before --rebuild-index (or write --data-dir=--rebuild-index)",
        ),
        (["--name="], '--name: expected a printable name, found ""'),
        (["--name=a\nb"], r"--name: expected a printable name, found 'a\nb'"),
        (["--name=\udcff"], r"--name: expected a printable name, found '\udcff'"),
        (["--rebuild-index=yes"], '--rebuild-index: expected true or false, found "yes"'),
        (["--version="], '--version: expected true or false, found ""'),
        (
            ["--snapshot-count", "0"],
            '--snapshot-count: expected a whole number, 1 or more, found "0"',
        ),
        (
            ["--snapshot-count=-1"],
            '--snapshot-count: expected a whole number, 1 or more, found "-1"',
        ),
        (
            ["--event-history-limit", "1_000"],
            '--event-history-limit: expected a whole number, 1 or more, found "1_000"',
        ),
        (
            ["--event-history-limit", "²"],
            '--event-history-limit: expected a whole number, 1 or more, found "²"',
        ),
        (
            ["--event-history-limit", "9" * 19],
            f'--event-history-limit: expected a whole number, 1 or more, found "{"9" * 19}"',
        ),
        (
            ["--wal-segment-bytes", "65535"],
            '--wal-segment-bytes: expected a whole number, 65536 to 1073741824, found "65535"',
        ),
        (
            ["--max-header-bytes", "100"],
            '--max-header-bytes: expected a whole number, 1024 or more, found "100"',
        ),
        (["--idle-timeout-s", "0"], '--idle-timeout-s: expected seconds above 0, found "0"'),
        (["--idle-timeout-s", "nan"], '--idle-timeout-s: expected seconds above 0, found "nan"'),
        (["--idle-timeout-s", "inf"], '--idle-timeout-s: expected seconds above 0, found "inf"'),
        (["--idle-timeout-s", "1m"], '--idle-timeout-s: expected seconds above 0, found "1m"'),
        (
            ["--log-outputs="],
            '--log-outputs: expected stderr, stdout or the name of a file, found ""',
        ),
        (
            ["--log-level", "loud"],
            '--log-level: expected one of debug, info, warn, error, panic, fatal, found "loud"',
        ),
        (
            ["--cors", "example.com"],
            '--cors: expected * or origins such as http://host:80, found "example.com"',
        ),
        (
            ["--cors", "http://a/"],
            '--cors: expected * or origins such as http://host:80, found "http://a/"',
        ),
        (["--enable-v2=false"], "--enable-v2=false: the v2 API is all that kvd serves"),
        (
            ["--initial-cluster", "a=http://a:2380,b=http://b:2380"],
            "--initial-cluster: kvd runs as a single member, "
            'found "a=http://a:2380,b=http://b:2380"; for several servers with one store see '
            "--replicate",
        ),
        (
            ["--initial-cluster", "a=http://a:2380", "--name=b"],
            '--initial-cluster: expected this member, "b" (--name), found "a=http://a:2380"',
        ),
        (
            ["--initial-cluster-state", "old"],
            '--initial-cluster-state: expected one of new, existing, found "old"',
        ),
        (
            ["--addr", "a:1", "--advertise-client-urls", "http://a:1"],
            "--addr and --advertise-client-urls say the same: give one",
        ),
        (["--bind-addr", "a"], '--bind-addr: a URL needs a port, found "http://a"'),
    ],
    ids=lambda value: (
        " ".join(value).encode("ascii", "backslashreplace").decode()
        if isinstance(value, list)
        else ""
    ),
)
def test_a_bad_command_line_is_refused_in_one_line(argv, message):
    with pytest.raises(ConfigError) as refusal:
        parse(argv)
    assert str(refusal.value) == message
    assert refusal.value.exit_status == 64


@pytest.mark.parametrize("argv", [["--help"], ["-help"], ["-h"], ["--help=true"]], ids=str)
def test_help_is_a_request_of_its_own(argv):
    assert parse(["--name", "x", *argv]) == Printout(help_text())


@pytest.mark.parametrize("argv", [["--version"], ["-version"], ["--version=1"]], ids=str)
def test_version_is_a_request_of_its_own(argv):
    assert parse(argv) == Printout(f"kvd {__version__}\n")


def test_help_and_version_can_be_declined():
    assert config("--help=false", "--version=false", "--print-config=false") == config()


def test_flags_of_etcd_without_effect_are_accepted_and_named_in_one_warning():
    (warning,) = config(
        "-listen-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster",
        "default=http://127.0.0.1:2380",
        "--pre-vote",
        "--heartbeat-interval",
        "100",
    ).warnings
    assert warning == (
        "without effect here, ignored: --listen-peer-urls --pre-vote --heartbeat-interval"
    )


def test_enable_v2_is_obeyed_and_so_not_named_as_ignored():
    assert config("--enable-v2").warnings == ()
    assert config("--enable-v2=true").warnings == ()


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_help_names_each_flag(flag):
    assert f"--{flag.name}" in help_text()


def test_help_fits_a_terminal():
    assert max(map(len, help_text().splitlines())) <= 100
