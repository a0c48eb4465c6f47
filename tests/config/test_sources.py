"""The sources of settings: command line, environment and file, and their precedence."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.config.config import Config
from kvd.config.flags import FLAGS
from kvd.config.load import ConfigError, Printout, parse

FILE = "/etc/kvd.yml"


def config(*argv: str, environ: dict[str, str] | None = None, file: str = "") -> Config:
    parsed = parse(argv, environ or {}, lambda _path: file.encode())
    assert isinstance(parsed, Config)
    return parsed


def from_file(text: str) -> Config:
    return config("--config-file", FILE, file=text)


def refusal(*argv: str, environ: dict[str, str] | None = None, file: str = "") -> str:
    with pytest.raises(ConfigError) as refused:
        config(*argv, environ=environ, file=file)
    return str(refused.value)


def test_each_source_rules_over_those_before_it():
    argv = ("--config-file", FILE)
    file = "name: file"
    etcd, kvd = {"ETCD_NAME": "etcd"}, {"KVD_NAME": "kvd"}
    assert config().name == "default"
    assert config(*argv, file=file).name == "file"
    assert config(*argv, file=file, environ=etcd).name == "etcd"
    assert config(*argv, file=file, environ=kvd | etcd).name == "kvd"
    assert config(*argv, "--name", "flag", file=file, environ=kvd | etcd).name == "flag"


@pytest.mark.parametrize("variable", ["ETCD_CONFIG_FILE", "KVD_CONFIG_FILE"])
def test_the_environment_can_name_the_file(variable):
    assert config(environ={variable: FILE}, file="name: infra0").name == "infra0"


def test_an_empty_variable_counts_as_none():
    assert config(environ={"ETCD_NAME": "", "ETCD_CORS": ""}) == config()


def test_a_switch_in_the_environment_has_a_value():
    assert config(environ={"ETCD_DEBUG": "true"}).log_level == "DEBUG"
    assert config(environ={"ETCD_DEBUG": "0"}).log_level == "INFO"


def test_the_environment_of_another_program_is_left_alone():
    assert config(environ={"HOME": "/root", "ETCDCTL_API": "2", "ETCD_UNSUPPORTED_ARCH": "x"}) == (
        config()
    )


def test_unknown_variables_are_named_in_one_warning():
    environ = {"ETCD_VER": "3.4", "KVD_NMAE": "x", "ETCD_HELP": "true", "ETCD_name": "y"}
    assert config(environ=environ).warnings == (
        "unknown variables, ignored: ETCD_HELP ETCD_VER ETCD_name KVD_NMAE",
    )


def test_what_has_no_effect_is_named_as_it_was_given():
    environ = {"ETCD_ELECTION_TIMEOUT": "1000"}
    parsed = config("--pre-vote", "--config-file", FILE, environ=environ, file="max-wals: 5")
    assert parsed.warnings == (
        f"without effect here, ignored: {FILE}: max-wals ETCD_ELECTION_TIMEOUT --pre-vote",
    )


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"ETCD_SNAPSHOT_COUNT": "x"},
            'ETCD_SNAPSHOT_COUNT: expected a whole number, 1 or more, found "x"',
        ),
        ({"KVD_REBUILD_INDEX": "yes"}, 'KVD_REBUILD_INDEX: expected true or false, found "yes"'),
        ({"ETCD_ENABLE_V2": "false"}, "ETCD_ENABLE_V2=false: the v2 API is all that kvd serves"),
        (
            {"ETCD_LISTEN_CLIENT_URLS": "http://a"},
            'ETCD_LISTEN_CLIENT_URLS: a URL needs a port, found "http://a"',
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_variable_is_refused_by_its_name(environ, message):
    assert refusal(environ=environ) == message


def test_a_file_in_the_words_of_etcds_sample_is_understood():
    parsed = from_file(
        """
        # comment
        name: 'infra0'
        data-dir:
        snapshot-count: 10000
        heartbeat-interval: 100
        listen-peer-urls: http://localhost:2380
        listen-client-urls: http://localhost:2379,http://localhost:4001
        cors:
        initial-cluster: "infra0=http://localhost:2380"
        proxy: off
        proxy-failure-wait: 5000
        peer-transport-security:
          cert-file:
          client-cert-auth: false
        log-level: debug
        log-outputs: [stderr]
        """
    )
    assert parsed.name == "infra0"
    assert parsed.data_dir == Path("infra0.etcd")
    assert parsed.snapshot_count == 10000
    assert [url.port for url in parsed.listen] == [2379, 4001]
    assert parsed.log_level == "DEBUG"
    (warning,) = parsed.warnings
    assert f"{FILE}: peer-transport-security: client-cert-auth" in warning


def test_a_list_in_a_file_is_the_same_as_commas():
    parsed = from_file("cors: [http://a:80, http://b]")
    assert parsed.cors == ("http://a:80", "http://b")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "name:\n"])
def test_a_file_that_says_nothing_changes_nothing(text):
    assert from_file(text) == config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is no YAML: line 1: expected the node content, but found '<stream end>'"),
        (
            "name: a\n\tb: c",
            "is no YAML: line 2: found character '\\t' that cannot start any token",
        ),
        ("name: \x00", "is no YAML: unacceptable character #x0000: special characters are not"),
        ("when: 2026-99-99", "month must be in 1..12"),
        ("snapshot-count: 0x" + "f" * 5000, "Exceeds the limit (4300 digits) for integer string"),
        ("cors: " + "[" * 1500 + "]" * 1500, "is nested too deeply"),
        ("cors: &a [*a]", "is nested too deeply"),
        ("? [a]\n: b", "is no YAML: line 1: found unhashable key"),
        ("just text", "expected lines of the form `flag: value`"),
        ("- name", "expected lines of the form `flag: value`"),
        ("nmae: x", 'unknown key "nmae"; did you mean name?'),
        ("12: x", 'unknown key "12"; see kvd --help'),
        ("help: true", 'unknown key "help"; see kvd --help'),
        ("config-file: x", 'unknown key "config-file"; see kvd --help'),
        (
            "peer-transport-security: {nonsense: 1}",
            'unknown key "peer-nonsense"; did you mean peers?',
        ),
        (
            "client-transport-security: x",
            "client-transport-security: expected lines of the form `flag: value`",
        ),
        (
            "name: {a: b}",
            "name: expected a text, a number, a truth value or a list of these",
        ),
        ("snapshot-count: 1.5", 'snapshot-count: expected a whole number, 1 or more, found "1.5"'),
        ("name: !!python/object/apply:os.getcwd []", "is no YAML: line 1: could not determine a"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_reason(text, message):
    refused = refusal("--config-file", FILE, file=text)
    assert refused.startswith(f"{FILE}: {message.partition(';')[0]}")
    assert "\n" not in refused


def said(*argv: str, file: bytes = b"") -> str:
    """What a person reads of a refusal; empty where there is none."""
    try:
        parse(argv, {}, lambda _path: file)
    except ConfigError as refused:
        return str(refused)
    return ""


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_configuration_or_refused_in_one_line(data):
    assert len(said("--config-file", FILE, file=data).splitlines()) <= 1


WORDS = st.sampled_from([f"--{flag.name}" for flag in FLAGS]) | st.text()


@given(st.lists(WORDS | st.tuples(WORDS, st.text()).map("=".join)))
def test_any_command_line_is_a_configuration_or_refused_in_one_line(argv):
    assert len(said(*argv).splitlines()) <= 1


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    path = str(tmp_path / "missing.yml")
    with pytest.raises(ConfigError) as refused:
        parse(["--config-file", path], {}, lambda name: Path(name).read_bytes())
    assert str(refused.value) == f"--config-file: {path}: No such file or directory"


def test_the_configuration_is_printed_with_the_origin_of_each_value():
    environ = {"ETCD_NAME": "infra0", "KVD_CONFIG_FILE": FILE}
    printed = parse(
        ["--print-config", "--cors", "*", "--debug"], environ, lambda _path: b"snapshot-count: 7"
    )
    assert isinstance(printed, Printout)
    words = [line.partition(" # ") for line in printed.text.splitlines()]
    lines = {setting.strip(): origin for setting, _, origin in words}
    assert lines["name: infra0"] == "ETCD_NAME"
    assert lines["data-dir: infra0.etcd"] == "default"
    assert lines["advertise-client-urls: http://127.0.0.1:2379"] == "default"
    assert lines["cors: '*'"] == "--cors"
    assert lines["snapshot-count: 7"] == f"{FILE}: snapshot-count"
    assert lines["log-level: debug"] == "--debug"
    assert lines["max-watchers:"] == "default"


@pytest.mark.parametrize(
    "name", ["infra0", "007", "1_0", "yes", "null", "a: b", "#", "ä", "x" * 200]
)
def test_what_is_printed_is_a_configuration_file_that_says_the_same(name):
    argv = ["--name", name, "--cors", "*", "--max-watchers=5", "--idle-timeout-s=0.5"]
    printed = parse([*argv, "--print-config"])
    assert isinstance(printed, Printout)
    assert from_file(printed.text) == config(*argv)


def test_a_configuration_that_cannot_be_followed_is_not_printed():
    assert refusal("--print-config", "--max-watchers=x").startswith("--max-watchers")
