"""The command line, checked: flags and the texts of their values → one frozen `Config`.

Nothing here looks at the machine (no file, no environment, no clock); whether a directory can be
used or an address is free shows when the server starts. The flags themselves are the table of
`kvd.flags`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from kvd.flags import EXIT_USAGE, FLAGS, NO_EFFECT, ConfigError, help_text, shown, split

__all__ = ["EXIT_USAGE", "Config", "ConfigError", "ListenUrl", "Request", "help_text", "parse"]

# A segment is read into memory when the log is checked, so its size is also a bound on memory.
WAL_SEGMENT_BYTES_MIN = 64 * 1024
WAL_SEGMENT_BYTES_MAX = 1024 * 1024 * 1024
# Less than this refuses the heads that ordinary clients send.
HEADER_BYTES_MIN = 1024
INTEGER_MAX = 2**63 - 1


class Request(Enum):
    """What a command line may ask for instead of a server; the value is the flag's name."""

    HELP = "help"
    VERSION = "version"


@dataclass(frozen=True, slots=True)
class ListenUrl:
    """An address to listen on; as a string, its URL.

    Attributes:
        host: A name or an address, an IPv6 address without its brackets.
        port: 0 lets the system choose one.
    """

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Config:
    """What the command line says.

    Attributes:
        name: This member's name, as `/v2/members` shows it.
        data_dir: The data directory, as it was given (it may be relative, or not there yet).
        listen: The addresses to serve clients on; at least one.
        advertise: The URLs that clients are told to use; at least one. Without the flag these are
            the URLs listened on, port 0 included, which only the started server can fill in.
        snapshot_count: Log records after which a snapshot is made; None decides by size.
        event_history_limit: How many events a watch can look back.
        wal_segment_bytes: Size of a segment of the log.
        rebuild_index: Whether to build the index anew from snapshot and log.
        max_header_bytes: Limit of request line and headers together.
        max_connections: Limit of open connections; None goes by the limit of open files.
        max_watchers: Limit of waiting watches; None leaves it to the limit of connections.
        idle_timeout_s: How long a connection may stay open between two requests.
        header_timeout_s: How long request line and headers may take from their first byte.
        body_timeout_s: How long a request body may take.
        failpoints: The faults to be made on purpose, as `storage.failpoints` reads them.
        log_level: The name of a level of the logging module.
        log_format: One of `LOG_FORMATS`.
        access_log: Whether each request is a line of the log.
        cors: The origins that may read answers in a browser; empty sends no CORS headers.
        ignored: Flags that were given and have no effect here, with their dashes, for one warning.
    """

    name: str
    data_dir: Path
    listen: tuple[ListenUrl, ...]
    advertise: tuple[str, ...]
    snapshot_count: int | None
    event_history_limit: int
    wal_segment_bytes: int
    rebuild_index: bool
    max_header_bytes: int
    max_connections: int | None
    max_watchers: int | None
    idle_timeout_s: float
    header_timeout_s: float
    body_timeout_s: float
    failpoints: tuple[str, ...]
    log_level: str
    log_format: str
    access_log: bool
    cors: tuple[str, ...]
    ignored: tuple[str, ...]


# Go's strconv.ParseBool.
_BOOLEANS = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)
LOG_FORMATS = ("text", "json")
# etcd's levels in words of the logging module, which has nothing above CRITICAL.
_LOG_LEVELS = {
    "debug": "DEBUG",
    "info": "INFO",
    "warn": "WARNING",
    "error": "ERROR",
    "panic": "CRITICAL",
    "fatal": "CRITICAL",
}


def parse(argv: Sequence[str]) -> Config | Request:
    """Read a command line, without the program's own name.

    Raises:
        ConfigError: A flag is unknown or its value cannot be used.
    """
    given = split(argv)
    texts = {flag.name: given.get(flag, flag.default) for flag in FLAGS}
    for request in Request:
        if _boolean(texts, request.value):
            return request
    _refuse_what_cannot_be_ignored(texts)

    listen = _listen_urls(texts)
    return Config(
        name=_name(texts),
        data_dir=_data_dir(texts),
        listen=listen,
        advertise=_advertised_urls(texts) or tuple(str(url) for url in listen),
        snapshot_count=_integer_or_none(texts, "snapshot-count"),
        event_history_limit=_integer(texts, "event-history-limit"),
        wal_segment_bytes=_integer(
            texts, "wal-segment-bytes", lowest=WAL_SEGMENT_BYTES_MIN, highest=WAL_SEGMENT_BYTES_MAX
        ),
        rebuild_index=_boolean(texts, "rebuild-index"),
        max_header_bytes=_integer(texts, "max-header-bytes", lowest=HEADER_BYTES_MIN),
        max_connections=_integer_or_none(texts, "max-connections"),
        max_watchers=_integer_or_none(texts, "max-watchers"),
        idle_timeout_s=_seconds(texts, "idle-timeout-s"),
        header_timeout_s=_seconds(texts, "header-timeout-s"),
        body_timeout_s=_seconds(texts, "body-timeout-s"),
        failpoints=_failpoints(texts),
        log_level=_log_level(texts),
        log_format=_one_of(texts, "log-format", LOG_FORMATS),
        access_log=_boolean(texts, "access-log"),
        cors=_origins(texts),
        ignored=tuple(f"--{flag.name}" for flag in given if flag.group == NO_EFFECT),
    )


def _refuse_what_cannot_be_ignored(texts: Mapping[str, str]) -> None:
    if not _boolean(texts, "enable-v2"):
        raise ConfigError("--enable-v2=false: the v2 API is all that kvd serves")
    members = {text.partition("=")[0].strip() for text in texts["initial-cluster"].split(",")}
    if len(members) > 1:
        raise ConfigError(
            "--initial-cluster: kvd runs as a single member, found "
            + shown(texts["initial-cluster"])
        )


def _name(texts: Mapping[str, str]) -> str:
    # Bytes of the command line that are no UTF-8 arrive as surrogates, which are not printable.
    if not texts["name"] or not texts["name"].isprintable():
        raise ConfigError(f"--name: expected a printable name, found {shown(texts['name'])}")
    return texts["name"]


def _data_dir(texts: Mapping[str, str]) -> Path:
    if not texts["data-dir"]:
        raise ConfigError('--data-dir: expected a directory, found ""')
    return Path(texts["data-dir"])


def _boolean(texts: Mapping[str, str], name: str) -> bool:
    try:
        return _BOOLEANS[texts[name]]
    except KeyError:
        raise ConfigError(f"--{name}: expected true or false, found {shown(texts[name])}") from None


def _integer(
    texts: Mapping[str, str], name: str, *, lowest: int = 1, highest: int = INTEGER_MAX
) -> int:
    text = texts[name]
    # int() alone would also take signs, blanks, underscores and digits of every script.
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not lowest <= value <= highest:
        bounds = f"{lowest} or more" if highest == INTEGER_MAX else f"{lowest} to {highest}"
        raise ConfigError(f"--{name}: expected a whole number, {bounds}, found {shown(text)}")
    return value


def _integer_or_none(texts: Mapping[str, str], name: str) -> int | None:
    return _integer(texts, name) if texts[name] else None


def _seconds(texts: Mapping[str, str], name: str) -> float:
    try:
        value = float(texts[name])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"--{name}: expected seconds above 0, found {shown(texts[name])}")
    return value


def _failpoints(texts: Mapping[str, str]) -> tuple[str, ...]:
    faults = tuple(text.strip() for text in texts["failpoint"].split(",") if text.strip())
    if faults and not _boolean(texts, "enable-failpoints"):
        raise ConfigError("--failpoint needs --enable-failpoints: it makes faults on purpose")
    return faults


def _one_of(texts: Mapping[str, str], name: str, words: Sequence[str]) -> str:
    if texts[name] not in words:
        expected, found = ", ".join(words), shown(texts[name])
        raise ConfigError(f"--{name}: expected one of {expected}, found {found}")
    return texts[name]


def _log_level(texts: Mapping[str, str]) -> str:
    return _LOG_LEVELS[_one_of(texts, "log-level", tuple(_LOG_LEVELS))]


def _listen_urls(texts: Mapping[str, str]) -> tuple[ListenUrl, ...]:
    name = "listen-client-urls"
    urls: list[ListenUrl] = []
    for text in _members(texts, name):
        parts, host, port = _url(name, text)
        if parts.scheme != "http":
            raise ConfigError(
                f"--{name}: kvd does not speak TLS; expected http://, found {shown(text)}"
            )
        url = ListenUrl(host, port)
        if port and url in urls:
            raise ConfigError(f"--{name}: {shown(text)} is there twice")
        urls.append(url)
    if not urls:
        raise ConfigError(f"--{name}: expected at least one URL")
    return tuple(urls)


def _advertised_urls(texts: Mapping[str, str]) -> tuple[str, ...]:
    name = "advertise-client-urls"
    urls = _members(texts, name)
    for text in urls:
        _url(name, text)  # https:// is fine here: something in front of kvd may speak it
    return tuple(urls)


def _url(name: str, text: str) -> tuple[SplitResult, str, int]:
    """Take a URL apart that has a scheme, a host and a port and nothing else."""

    def refusal(reason: str) -> ConfigError:
        return ConfigError(f"--{name}: {reason}, found {shown(text)}")

    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number up to 65535, brackets around no address
        raise refusal("expected http://HOST:PORT") from None
    if parts.scheme not in ("http", "https") or not text.isprintable() or " " in text:
        raise refusal("expected http://HOST:PORT")
    if parts.path or "?" in text or "#" in text:
        raise refusal("a URL must not contain a path")
    if "@" in parts.netloc:
        raise refusal("a URL must not contain a user")
    if not host:
        raise refusal("a URL needs a host (0.0.0.0 or [::] is every address)")
    if port is None:
        raise refusal("a URL needs a port")
    return parts, host, port


def _origins(texts: Mapping[str, str]) -> tuple[str, ...]:
    origins = _members(texts, "cors")
    for text in origins:
        scheme, separator, host = text.partition("://")
        is_origin = scheme in ("http", "https") and separator and host and "/" not in host
        if text != "*" and not (is_origin and text.isprintable()):
            raise ConfigError(
                f"--cors: expected * or origins such as http://host:80, found {shown(text)}"
            )
    return tuple(origins)


def _members(texts: Mapping[str, str], name: str) -> list[str]:
    """The members of a comma list, without the blanks around them; none for an empty text."""
    members = [text.strip() for text in texts[name].split(",")]
    if members == [""]:
        return []
    if "" in members:
        raise ConfigError(f"--{name}: expected a URL beside each comma, found {shown(texts[name])}")
    return members
