"""The flags of several servers with one store: a part of the table in `kvd.config.flags`.

Those of the engine are kvd's own. Those of peers are etcd's, without effect where `--replicate` is
not given: a server alone has no peers.
"""

from kvd.config.flag import REPLICAS, Flag

LEASE_S = 3

OF_THE_ENGINE = (
    Flag(
        "replicate",
        "",
        "URL",
        "share one store with other kvd, by a log in an etcd v3 cluster: "
        "etcd://HOST:PORT,HOST:PORT,.../PREFIX, or etcds:// with TLS; or in a PostgreSQL: "
        "postgres://HOST:PORT,.../DATABASE?schema=NAME; see `kvdctl help replicas`",
        REPLICAS,
    ),
    Flag("replicate-ca-file", "", "FILE", "authorities of the log's certificates", REPLICAS),
    Flag("replicate-cert-file", "", "FILE", "certificate shown to its servers, in PEM", REPLICAS),
    Flag("replicate-key-file", "", "FILE", "its private key, in PEM, not encrypted", REPLICAS),
    Flag("replicate-user", "", "NAME", "user of that etcd or PostgreSQL", REPLICAS),
    Flag("replicate-password-file", "", "FILE", "file that holds the user's password", REPLICAS),
    Flag(
        "replicate-lease",
        str(LEASE_S),
        "SECONDS",
        "how long a silent leader keeps the lead, 2 to 60",
        REPLICAS,
    ),
)
OF_PEERS = (
    Flag(
        "listen-peer-urls",
        "",
        "URL,...",
        "where the other replicas connect to: http://HOST:PORT or https://HOST:PORT",
        REPLICAS,
    ),
    Flag("peer-cert-file", "", "FILE", "certificate of https:// peer URLs, in PEM", REPLICAS),
    Flag("peer-key-file", "", "FILE", "its private key, in PEM, not encrypted", REPLICAS),
    Flag(
        "peer-trusted-ca-file",
        "",
        "FILE",
        "authorities of the certificates of the other replicas (default: those of the system)",
        REPLICAS,
    ),
    Flag(
        "peer-client-cert-auth",
        "false",
        "",
        "replicas that connect need a certificate of --peer-trusted-ca-file",
        REPLICAS,
    ),
)
PEER_NAMES = frozenset(flag.name for flag in OF_PEERS)
REPLICA_FLAGS = (*OF_THE_ENGINE, *OF_PEERS)
