"""The flags that do something: one table, from which parsing, defaults and `--help` all come.

To add one, add a row here, and in `kvd.config.load` a field with the line that reads it. A name in
the environment (`KVD_...`, `ETCD_...`) and a key in the configuration file come with the row. What
a value means is said in `kvd.config.load`; here it is only text. Those of replicas are in
`kvd.config.replicas.flags`, etcd's other flags in `kvd.config.etcd_flags`.
"""

from kvd.config.flag import (
    BROWSERS,
    EXTRAS,
    LIMITS,
    LOGGING,
    MEMBER,
    OLD,
    OTHER,
    SECURITY,
    STORAGE,
    Flag,
)
from kvd.config.replicas.flags import REPLICA_FLAGS

FLAGS = (
    Flag("name", "default", "NAME", "name of this member", MEMBER),
    Flag(
        "listen-client-urls",
        "http://127.0.0.1:2379",
        "URL,...",
        "where to serve clients: http://HOST:PORT, https://HOST:PORT, unix:///PATH or "
        "unixs:///PATH; port 0 takes a free one",
        MEMBER,
    ),
    Flag("listen-client-http-urls", "", "URL,...", "more of these", MEMBER),
    Flag(
        "advertise-client-urls",
        "",
        "URL,...",
        "the URLs given to clients (default: the ones listened on)",
        MEMBER,
    ),
    Flag(
        "listen-metrics-urls",
        "",
        "URL,...",
        "where to serve /metrics, /health, /readyz and /livez alone, also during recovery",
        MEMBER,
    ),
    Flag(
        "initial-advertise-peer-urls",
        "http://localhost:2380",
        "URL,...",
        "the peer URLs shown to clients; with --replicate where other replicas reach this one "
        "(default then: --listen-peer-urls)",
        MEMBER,
    ),
    Flag(
        "initial-cluster",
        "",
        "NAME=URL,...",
        "for etcd's sake: must name this member alone",
        MEMBER,
    ),
    Flag(
        "initial-cluster-token",
        "",
        "TOKEN",
        "give a new store the cluster id and the member id that etcd makes of this and of "
        "--initial-advertise-peer-urls (default: random ones)",
        MEMBER,
    ),
    Flag(
        "initial-cluster-state",
        "new",
        "STATE",
        "new; or existing, which refuses to make a new store",
        MEMBER,
    ),
    *REPLICA_FLAGS,
    Flag("data-dir", "", "DIR", "where the data is kept (default: NAME.etcd)", STORAGE),
    Flag(
        "wal-dir",
        "",
        "DIR",
        "where the log of a new store is kept, such as a disk of its own (default: in --data-dir)",
        STORAGE,
    ),
    Flag(
        "snapshot-count",
        "",
        "N",
        "make a snapshot every N log records (default: when the log has outgrown the last one)",
        STORAGE,
    ),
    Flag(
        "max-snapshots",
        "2",
        "N",
        "how many snapshots are kept, and the log since the oldest; at least 2; 0 keeps all",
        STORAGE,
    ),
    Flag("event-history-limit", "1000", "N", "how many events a watch can look back", STORAGE),
    Flag(
        "event-history-bytes",
        str(256 * 1024 * 1024),
        "N",
        "how many bytes these events may have together, values and previous values; the last one "
        "is always kept",
        STORAGE,
    ),
    Flag("wal-segment-bytes", str(64 * 1024 * 1024), "N", "size of a segment of the log", STORAGE),
    Flag(
        "wal-sync",
        "auto",
        "WAY",
        "how to sync the log: auto uses io_uring or Linux AIO, thread always uses a thread of "
        "kvd, whose calls a tracer sees",
        STORAGE,
    ),
    Flag(
        "rebuild-index", "false", "", "build the index from snapshot and log at this start", STORAGE
    ),
    Flag(
        "allow-network-fs",
        "false",
        "",
        "keep data on a network file system, where locks and syncs may not hold",
        STORAGE,
    ),
    Flag("cert-file", "", "FILE", "certificate of https:// URLs, in PEM", SECURITY),
    Flag("key-file", "", "FILE", "its private key, in PEM, not encrypted", SECURITY),
    Flag("auto-tls", "false", "", "make a self-signed certificate instead", SECURITY),
    Flag(
        "self-signed-cert-validity", "1", "YEARS", "how long such a certificate is valid", SECURITY
    ),
    Flag(
        "trusted-ca-file",
        "",
        "FILE",
        "authorities; each client then needs a certificate that one of them has signed",
        SECURITY,
    ),
    Flag(
        "client-cert-auth",
        "false",
        "",
        "the common name of a client's certificate is its user",
        SECURITY,
    ),
    Flag("client-crl-file", "", "FILE", "client certificates that are revoked", SECURITY),
    Flag(
        "client-cert-allowed-hostname",
        "",
        "NAME",
        "a name that each client's certificate must have",
        SECURITY,
    ),
    Flag("tls-min-version", "TLS1.2", "VERSION", "TLS1.2 or TLS1.3", SECURITY),
    Flag("tls-max-version", "", "VERSION", "the same", SECURITY),
    Flag(
        "cipher-suites",
        "",
        "SUITE,...",
        "suites of TLS 1.2, by Go's names, such as TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 "
        "(default: those that OpenSSL holds for secure)",
        SECURITY,
    ),
    Flag(
        "cors",
        "",
        "ORIGIN,...",
        "origins whose pages may use the API in a browser; * is every one (default: none, and "
        "pages of other sites may change nothing)",
        BROWSERS,
    ),
    Flag(
        "host-whitelist",
        "",
        "HOST,...",
        "hosts that requests without TLS may name; * is any (default: if only this machine can "
        "connect, its own names, addresses and names without a dot; else any)",
        BROWSERS,
    ),
    Flag(
        "extras",
        "true",
        "",
        "serve what etcd does not have, to clients that ask for it; see `kvdctl help extras`",
        EXTRAS,
    ),
    Flag(
        "ui",
        "on",
        "WAY",
        "serve the page /ui: on, read-only (the page changes nothing; the API still does) or off; "
        "it needs --extras",
        EXTRAS,
    ),
    Flag(
        "gzip-min-bytes",
        "0",
        "N",
        "compress answers of so many bytes and more for clients that accept gzip; 0 is none",
        EXTRAS,
    ),
    Flag(
        "discovery",
        "false",
        "",
        "serve /new, by which members of an etcd cluster to be find each other through kvd",
        EXTRAS,
        may_have_value=True,
    ),
    Flag(
        "discovery-ttl",
        str(7 * 24 * 3600),
        "SECONDS",
        "how long a token of /new lives",
        EXTRAS,
    ),
    Flag("discovery-max", "10000", "N", "limit of the tokens of /new", EXTRAS),
    Flag("max-header-bytes", "65536", "N", "limit of request line and headers together", LIMITS),
    Flag("max-body-bytes", str(10 << 20), "N", "limit of the body of a request", LIMITS),
    Flag("max-value-bytes", str(10 << 20), "N", "limit of a value", LIMITS),
    Flag("max-key-depth", "4096", "N", "limit of the components of a key", LIMITS),
    Flag(
        "max-connections",
        "",
        "N",
        "limit of open connections (default: by the limit of open files)",
        LIMITS,
    ),
    Flag(
        "max-watchers",
        "",
        "N",
        "limit of waiting watches (default: fifteen sixteenths of the connections)",
        LIMITS,
    ),
    Flag(
        "max-watchers-per-key",
        "",
        "N",
        "limit of the watches of one key (default: that of all watches)",
        LIMITS,
    ),
    Flag(
        "max-wait",
        "",
        "SECONDS",
        "end a watch that had nothing to tell for so long, cleanly, before a proxy cuts it; none "
        "without it",
        LIMITS,
    ),
    Flag("max-stream-bytes", str(1 << 20), "N", "cut a stream that leaves more unread", LIMITS),
    Flag(
        "max-buffered-bytes",
        str(256 << 20),
        "N",
        "limit of what waits in memory for all clients: unfinished requests and unread answers",
        LIMITS,
    ),
    Flag(
        "max-response-bytes",
        "",
        "N",
        "limit of one listing (default: three quarters of --max-buffered-bytes)",
        LIMITS,
    ),
    # etcd never closes an idle connection and its clients keep theirs: an hour only finds the dead.
    Flag("idle-timeout-s", "3600", "SECONDS", "close a connection without requests", LIMITS),
    Flag(
        "header-timeout-s",
        "30",
        "SECONDS",
        "how long the head of a request may take from its first byte, or a handshake of TLS",
        LIMITS,
    ),
    Flag("body-timeout-s", "60", "SECONDS", "how long the body of a request may take", LIMITS),
    Flag("write-timeout-s", "60", "SECONDS", "how long an answer may be left unread", LIMITS),
    Flag("log-level", "info", "LEVEL", "debug, info, warn, error, panic or fatal", LOGGING),
    Flag(
        "log-outputs",
        "stderr",
        "OUTPUT,...",
        "where the log goes: stderr, stdout, or the name of a file",
        LOGGING,
    ),
    Flag("log-format", "text", "FORMAT", "text, or json: one object per line", LOGGING),
    Flag("access-log", "false", "", "log each request when it has been answered", LOGGING),
    Flag("slow-request-s", "1", "SECONDS", "warn of requests that take longer", LOGGING),
    Flag("config-file", "", "FILE", "read settings from a YAML file", OTHER),
    Flag("print-config", "false", "", "print every setting and where it comes from", OTHER),
    Flag(
        "enable-failpoints",
        "false",
        "",
        "allow --failpoint: faults on purpose, for experiments with crashes",
        OTHER,
    ),
    Flag(
        "failpoint",
        "",
        "NAME=ACTION,...",
        "make a fault: crash, error:ERRNO, delay:SECONDS, tear:BYTES or short:BYTES at a named "
        "place, @N for the Nth time only; may be given again; kvdctl failpoints lists the places",
        OTHER,
        repeats=True,
    ),
    Flag("enable-v2", "true", "", "etcd's switch for the API, which is always on", OTHER),
    Flag("version", "false", "", "print the version and exit", OTHER),
    Flag("help", "false", "", "print this text and exit", OTHER),
    Flag("logger", "", "NAME", "zap: --log-format=json; capnslog: --log-format=text", OLD),
    Flag("debug", "false", "", "--log-level=debug", OLD),
    Flag("ca-file", "", "FILE", "--trusted-ca-file=FILE --client-cert-auth", OLD),
    Flag("addr", "", "HOST:PORT", "--advertise-client-urls=http://HOST:PORT", OLD),
    Flag("bind-addr", "", "HOST:PORT", "--listen-client-urls=http://HOST:PORT", OLD),
)
