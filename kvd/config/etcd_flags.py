"""etcd's flags that do nothing here: those of 2.x, 3.4 and 3.5 that `flags` does not have.

One that asks for nothing that could be missed is ignored, with one warning for all of them. One
that asks for what a single member cannot do is refused with the reason: silence would be a lie.
"""

from dataclasses import dataclass

from kvd.config.flag import Flag

NO_EFFECT = "Accepted for etcd's sake, without effect on a single member"
REFUSED = "Refused, unless at the value that asks for nothing"

# Peers, elections, proxies, the v3 API and its storage: there are none here. The log is always
# synced (unsafe-no-fsync), always checked (corrupt-check), and goes with the oldest snapshot
# (max-wals); a cluster of one is all there is (force-new-cluster). quota-backend-bytes and
# max-request-bytes bound etcd's v3 API alone, so that v2 data beyond them is nothing new; kvd has
# limits of its own.
_IGNORED = {
    "MS": """heartbeat-interval election-timeout peer-heartbeat-interval peer-election-timeout
        proxy-failure-wait proxy-refresh-interval proxy-dial-timeout proxy-write-timeout
        proxy-read-timeout""",
    "TIME": """backend-batch-interval auto-compaction-retention grpc-keepalive-min-time
        grpc-keepalive-interval grpc-keepalive-timeout auth-token-ttl
        experimental-corrupt-check-time experimental-compact-hash-check-time
        experimental-watch-progress-notify-interval experimental-warning-apply-duration""",
    "N": """max-wals quota-backend-bytes backend-batch-limit max-txn-ops
        max-request-bytes max-concurrent-streams bcrypt-cost max-result-buffer max-retry-attempts
        experimental-compaction-batch-limit
        experimental-bootstrap-defrag-threshold-megabytes""",
    "HOST:PORT": "peer-addr peer-bind-addr",
    "FILE": "peer-ca-file peer-crl-file",
    "TEXT": """auto-compaction-mode discovery-fallback discovery-proxy discovery-srv-name
        peer-cert-allowed-cn peer-cert-allowed-hostname auth-token metrics log-package-levels
        log-rotation-config-json backend-bbolt-freelist-type
        experimental-backend-bbolt-freelist-type v2-deprecation
        experimental-distributed-tracing-address experimental-distributed-tracing-service-name
        experimental-distributed-tracing-instance-id""",
    # etcd itself ignores the last row since 2.0, as switches: what follows them is not theirs.
    "": """initial-election-tick-advance pre-vote strict-reconfig-check force-new-cluster
        peer-auto-tls enable-pprof enable-log-rotation unsafe-no-fsync
        socket-reuse-port socket-reuse-address experimental-v3demo
        experimental-initial-corrupt-check experimental-compact-hash-check-enabled
        experimental-enable-lease-checkpoint experimental-peer-skip-client-san-verification
        experimental-txn-mode-write-with-shared-buffer experimental-enable-distributed-tracing
        cluster-active-size cluster-remove-delay cluster-sync-interval config force
        retry-interval snapshot v vv""",
}
IGNORED = tuple(
    Flag(name, "", value, "", NO_EFFECT)
    for value, names in _IGNORED.items()
    for name in names.split()
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A flag that is refused.

    Attributes:
        name: Without dashes.
        value: What `--help` calls its value.
        harmless: The texts with which it asks for nothing.
        reason: Why it is refused with any other.
    """

    name: str
    value: str
    harmless: tuple[str, ...]
    reason: str


_SINGLE = "kvd is a single member and joins no cluster"
DISCOVERY = f"{_SINGLE}; without a value, --discovery lets others find each other"
"""Why the flag is refused with etcd's kind of value."""
_FILE_OF_PEERS = "kvd is a single member; name it alone with --initial-cluster, or leave it out"

REFUSALS = (
    Refusal("discovery-srv", "DOMAIN", ("",), _SINGLE),
    Refusal("peers", "HOST:PORT,...", ("",), _FILE_OF_PEERS),
    Refusal("peers-file", "FILE", ("",), _FILE_OF_PEERS),
    # Unquoted in YAML, `off` is a boolean.
    Refusal("proxy", "MODE", ("", "off", "false"), "kvd is no proxy; it serves its own data"),
    Refusal(
        "experimental-enable-v2v3",
        "PREFIX",
        ("",),
        "kvd has no v3 store; it serves the v2 API from its own",
    ),
)
REFUSED_FLAGS = tuple(Flag(r.name, "", r.value, r.reason, REFUSED) for r in REFUSALS)
