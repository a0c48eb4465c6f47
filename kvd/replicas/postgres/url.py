"""The text that names a PostgreSQL and a place in it, in the form of libpq's URLs. Pure.

    postgres://h1,h2:5433/config?schema=kvd_prod&sslmode=verify-full

Several hosts are one primary and its standbys; `target_session_attrs` is read-write, always. Each
store has a schema of its own.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from kvd.replicas.etcd.url import host_and_port

PORT = 5432
SCHEMES = ("postgres", "postgresql")
SCHEMA = "kvd"
TLS_MODES = ("disable", "prefer", "require", "verify-ca", "verify-full")
_DATABASE = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
"""What needs no quotes in SQL, and is not cut off."""


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """Servers as host and port, the database, and the schema of the store.

    `tls_mode` is libpq's `sslmode`; empty for the default, which depends on the certificates.
    """

    hosts: tuple[tuple[str, int], ...]
    database: str
    schema: str = SCHEMA
    tls_mode: str = ""

    def __str__(self) -> str:
        hosts = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts
        )
        mode = f"&sslmode={self.tls_mode}" if self.tls_mode else ""
        return f"postgres://{hosts}/{self.database}?schema={self.schema}{mode}"


def parse(text: str) -> PostgresUrl:
    """Read such a text.

    Raises:
        ValueError: what is wrong with it.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError(f"{text!r} does not begin with postgres:// or postgresql://")
    place, _, query = rest.partition("?")
    hosts, _, database = place.partition("/")
    if "@" in rest:
        raise ValueError("a URL of an engine holds no user and no password; they have flags")
    parameters = _parameters(query)  # first: no message shows one that may be a password
    if not _DATABASE.fullmatch(database):
        raise ValueError(f"{text!r} {_complaint('database', database)}, as in postgres://host/kvd")
    schema = parameters.get("schema", SCHEMA)
    if not _NAME.fullmatch(schema) or schema.startswith("pg_"):
        raise ValueError(f"{text!r} {_complaint('schema', schema)}, lower case, not pg_")
    members = tuple(host_and_port(host, text, PORT) for host in hosts.split(","))
    if len(set(members)) < len(members):
        raise ValueError(f"{text!r} names a host twice")
    return PostgresUrl(members, database, schema, parameters.get("sslmode", ""))


def _complaint(what: str, name: str) -> str:
    has = f"has the {what} {name!r}" if name else f"names no {what}"
    return f"{has}: a name of at most 63 letters, digits and _ is needed"


def _parameters(query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    known = {
        "schema": None,
        "sslmode": TLS_MODES,
        "target_session_attrs": ("read-write",),
    }
    for name, value in pairs:
        if name not in known:
            raise ValueError(f"the URL has the parameter {name}; known are {', '.join(known)}")
        values = known[name]
        if values is not None and value not in values:
            raise ValueError(f"the URL has {name}={value}; it may be {', '.join(values)}")
    if len(dict(pairs)) < len(pairs):
        raise ValueError("the URL has a parameter twice")
    return dict(pairs)
