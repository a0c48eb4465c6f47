"""The settings, checked: texts from command line, environment and file → one frozen `Config`.

Nothing here looks at the machine (no clock, no file but the one that `read_file` is asked for);
whether a directory can be used or an address is free shows when the server starts. The flags are
the tables of `kvd.config.flags` and `kvd.config.etcd_flags`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from kvd.config.compat import refuse_what_cannot_be_ignored, with_present_names
from kvd.config.config import Config
from kvd.config.etcd_flags import DISCOVERY, NO_EFFECT
from kvd.config.file import from_file
from kvd.config.flag import EXIT_USAGE, ConfigError, shown
from kvd.config.help import help_text, settings_text, version_text
from kvd.config.replicas.flags import PEER_NAMES
from kvd.config.replicas.settings import peer_urls, replica_config, unused_tls
from kvd.config.sources import (
    BY_NAME,
    DEFAULTS,
    Setting,
    Settings,
    from_command_line,
    from_environment,
)
from kvd.config.tls import tls_config, tls_flags
from kvd.config.urls import WILDCARDS, ListenUrl, advertised_urls, listen_urls, origins
from kvd.config.values import boolean, comma_list, integer, integer_or_none, refusal, seconds, word

__all__ = ["EXIT_USAGE", "Config", "ConfigError", "ListenUrl", "Printout", "parse"]

FORM_BYTES_MAX = 10 << 20
"""Bytes of a form body, names included; one more is refused (net/http's limit in etcd)."""

# A segment is read into memory when the log is checked, so its size is also a bound on memory.
WAL_SEGMENT_BYTES_MIN = 64 * 1024
WAL_SEGMENT_BYTES_MAX = 1024 * 1024 * 1024
# Less than this refuses the heads that ordinary clients send.
HEADER_BYTES_MIN = 1024
BODY_BYTES_MIN = 1024
# One body of the largest size must fit.
BUFFERED_BYTES_MIN = FORM_BYTES_MAX

# They are counted for each new one.
DISCOVERY_MAX_MAX = 100_000

_NO_VARIABLES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Printout:
    """A text to print instead of starting a server, with its closing newline."""

    text: str


# etcd's levels in words of the logging module, which has nothing above CRITICAL.
_LOG_LEVELS = {
    "debug": "DEBUG",
    "info": "INFO",
    "warn": "WARNING",
    "error": "ERROR",
    "panic": "CRITICAL",
    "fatal": "CRITICAL",
}


# To the journal of systemd goes what is written to standard error.
_STANDARD_ERROR = ("default", "systemd/journal")


def parse(
    argv: Sequence[str],
    environ: Mapping[str, str] = _NO_VARIABLES,
    read_file: Callable[[str], bytes] | None = None,
) -> Config | Printout:
    """Read a command line, without the program's own name, and what else has settings.

    Args:
        argv: The command line.
        environ: The variables of the environment.
        read_file: Returns what is in the configuration file, if one is named.

    Raises:
        ConfigError: A flag is unknown or its value cannot be used.
    """
    flags = from_command_line(argv)
    if boolean(DEFAULTS | flags, "help"):
        return Printout(help_text())
    if boolean(DEFAULTS | flags, "version"):
        return Printout(version_text())
    variables, unknown = from_environment(environ)
    given = variables | flags
    if "config-file" in given and given["config-file"].text:
        assert read_file is not None
        given = _from_file(given["config-file"], read_file) | given
    settings = with_present_names(DEFAULTS | given)
    config = _config(settings)
    config = replace(config, warnings=_warnings(given, unknown, config))
    if boolean(settings, "print-config"):
        return Printout(settings_text(settings | _derived(settings, config)))
    return config


def _config(settings: Settings) -> Config:
    """Read the settings: one line for each field, which is why this function is long."""
    refuse_what_cannot_be_ignored(settings)
    listen = listen_urls(settings, "listen-client-urls", "listen-client-http-urls")
    if not listen:
        where = settings["listen-client-urls"].where
        raise ConfigError(f"{where}: expected at least one URL")
    metrics = listen_urls(settings, "listen-metrics-urls")
    replicate = replica_config(settings)
    return Config(
        name=_name(settings),
        listen=listen,
        advertise=advertised_urls(settings, "advertise-client-urls") or tuple(map(str, listen)),
        listen_metrics=metrics,
        peer_urls=peer_urls(settings, replicate),
        cluster_token=settings["initial-cluster-token"].text or None,
        must_exist=word(settings, "initial-cluster-state", "new", "existing") == "existing",
        replicate=replicate,
        data_dir=Path(settings["data-dir"].text or f"{settings['name'].text}.etcd"),
        wal_dir=Path(settings["wal-dir"].text) if settings["wal-dir"].text else None,
        snapshot_count=integer_or_none(settings, "snapshot-count"),
        snapshots_kept=integer(settings, "max-snapshots", lowest=0) or None,
        event_history_limit=integer(settings, "event-history-limit"),
        event_history_bytes=integer(settings, "event-history-bytes"),
        wal_segment_bytes=integer(
            settings,
            "wal-segment-bytes",
            lowest=WAL_SEGMENT_BYTES_MIN,
            highest=WAL_SEGMENT_BYTES_MAX,
        ),
        rebuild_index=boolean(settings, "rebuild-index"),
        allow_network_fs=boolean(settings, "allow-network-fs"),
        tls=tls_config(settings, (*listen, *metrics)),
        cors=origins(settings, "cors"),
        host_whitelist=None
        if settings["host-whitelist"].is_default
        else tuple(comma_list(settings, "host-whitelist", "a host")),
        extras=boolean(settings, "extras"),
        ui=_ui(settings),
        gzip_min_bytes=integer(settings, "gzip-min-bytes", lowest=0) or None,
        discovery=_discovery(settings),
        discovery_ttl_s=integer(settings, "discovery-ttl"),
        discovery_max=integer(settings, "discovery-max", highest=DISCOVERY_MAX_MAX),
        max_header_bytes=integer(settings, "max-header-bytes", lowest=HEADER_BYTES_MIN),
        max_body_bytes=integer(
            settings, "max-body-bytes", lowest=BODY_BYTES_MIN, highest=FORM_BYTES_MAX
        ),
        max_value_bytes=integer(settings, "max-value-bytes", highest=FORM_BYTES_MAX),
        max_key_depth=integer(settings, "max-key-depth"),
        max_connections=integer_or_none(settings, "max-connections"),
        max_watchers=integer_or_none(settings, "max-watchers"),
        max_watchers_per_key=integer_or_none(settings, "max-watchers-per-key"),
        max_wait_s=integer_or_none(settings, "max-wait"),
        max_stream_bytes=integer(settings, "max-stream-bytes"),
        max_buffered_bytes=integer(settings, "max-buffered-bytes", lowest=BUFFERED_BYTES_MIN),
        max_response_bytes=integer_or_none(settings, "max-response-bytes"),
        idle_timeout_s=seconds(settings, "idle-timeout-s"),
        header_timeout_s=seconds(settings, "header-timeout-s"),
        body_timeout_s=seconds(settings, "body-timeout-s"),
        write_timeout_s=seconds(settings, "write-timeout-s"),
        log_level=_log_level(settings),
        wal_sync=word(settings, "wal-sync", "auto", "thread"),
        log_outputs=_log_outputs(settings),
        log_format=word(settings, "log-format", "text", "json"),
        access_log=boolean(settings, "access-log"),
        slow_request_s=seconds(settings, "slow-request-s"),
        failpoints=_failpoints(settings),
    )


def _from_file(setting: Setting, read_file: Callable[[str], bytes]) -> Settings:
    try:
        data = read_file(setting.text)
    except OSError as error:
        raise ConfigError(f"{setting.where}: {setting.text}: {error.strerror}") from None
    return from_file(setting.text, data)


def _derived(settings: Settings, config: Config) -> Settings:
    """Return the settings whose defaults depend on others, with what they come to."""
    texts = {"data-dir": str(config.data_dir), "advertise-client-urls": ",".join(config.advertise)}
    return {name: replace(settings[name], text=text) for name, text in texts.items()}


def _warnings(given: Settings, unknown: Sequence[str], config: Config) -> tuple[str, ...]:
    of_others = PEER_NAMES if config.replicate is None else ()
    ignored = [
        setting.where
        for name, setting in given.items()
        if BY_NAME[name].group == NO_EFFECT or name in of_others
    ]
    unreachable = [url for url in config.advertise if urlsplit(url).hostname in WILDCARDS]
    lines = {
        "without effect here, ignored": ignored,
        "unknown variables, ignored": unknown,
        "no https:// URL is listened on, ignored": [] if config.tls else tls_flags(given),
        "no https:// peer URL is listened on, ignored": unused_tls(given, config.replicate),
        "clients are told URLs that lead to themselves, see --advertise-client-urls": unreachable,
    }
    return tuple(f"{line}: {' '.join(names)}" for line, names in lines.items() if names)


def _name(settings: Settings) -> str:
    name = settings["name"].text
    # Bytes of the command line that are no UTF-8 arrive as surrogates, which are not printable.
    if not name or not name.isprintable():
        raise refusal(settings, "name", "a printable name")
    return name


def _ui(settings: Settings) -> str:
    way = word(settings, "ui", "on", "read-only", "off")
    return way if boolean(settings, "extras") else "off"


def _discovery(settings: Settings) -> bool:
    setting = settings["discovery"]
    if "://" in setting.text:
        raise ConfigError(f"{setting.where}={shown(setting.text)}: {DISCOVERY}")
    is_on = bool(setting.text) and boolean(settings, "discovery")
    if is_on and not boolean(settings, "extras"):
        raise ConfigError(f"{setting.where} needs {settings['extras'].where}: it is one of them")
    return is_on


def _failpoints(settings: Settings) -> tuple[str, ...]:
    faults = tuple(comma_list(settings, "failpoint", "a fault"))
    if faults and not boolean(settings, "enable-failpoints"):
        raise ConfigError("--failpoint needs --enable-failpoints: it makes faults on purpose")
    return faults


def _log_outputs(settings: Settings) -> tuple[str, ...]:
    outputs = comma_list(settings, "log-outputs", "an output")
    if not outputs:
        raise refusal(settings, "log-outputs", "stderr, stdout or the name of a file")
    return tuple("stderr" if output in _STANDARD_ERROR else output for output in outputs)


def _log_level(settings: Settings) -> str:
    return _LOG_LEVELS[word(settings, "log-level", *_LOG_LEVELS)]
