"""The log as tables of PostgreSQL, in a schema of its own, and the statements on them. Pure.

    meta      one row: the values that the log was made with
    head      one row: `epoch` of the leader, 0 without one, and its lease, which ends at `until`;
              `base`, which each change of leader increases; `first`, below which all is trimmed
    log       a row for each frame, immutable. The frame that the log begins after has a row without
              payload, so that the log has a last row always
    replica   what each replica says of itself

The revision of a frame is `base + seq` at its insertion, an epoch `base + seq` of the last frame
before it, with the new `base`: revisions grow in the order of the commits without a counter that
each append would have to update. An election adds a random number to `base`: of two leaders of
which a fail-over has lost one, no epoch is that of the other.

APPEND locks the row of `head`, and an election updates it: each sees the other committed or not
begun. A statement that waited for that lock sees the new `head`, but `log` as it was before; so it
looks at rows that never change. A frame that is not in `log` and was not trimmed was never written
(`first` is of the locked row, the absence is checked by the primary key, which sees all commits);
and if the frame before it is there, it is the next.

Durable is what a commit has returned for: with synchronous standbys that they have it as well. A
row may be visible earlier, where the wait for them was broken off. PROOF writes to the WAL, so that
the commit of a statement that reads is not returned before the standbys have all that it saw, or
never, by a primary that was replaced meanwhile. Without standbys it writes nothing.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from kvd.replicas.engine import Candidate, End, Lead, Leadership

FORMAT = 1
ID_BYTES = 8
BASE_STEP_MAX = 1 << 30
"""Of the random number; there are 2^33 elections in the numbers."""
PAGE_FRAMES = 64
PAGE_BYTES = 4 << 20

GREET = """
    SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool AS is_read_only,
        current_setting('server_version_num')::int AS version,
        current_setting('fsync') AS fsync,
        current_setting('synchronous_commit') AS commits,
        set_config('synchronous_commit', current_setting('synchronous_commit'), false),
        set_config('search_path', $1, false),
        set_config('default_transaction_isolation', 'read committed', false),
        set_config('statement_timeout', '0', false),
        set_config('lock_timeout', '0', false)
"""
"""A look at a new connection, and settings for it that no reload of a server's file changes."""

ACTIVE = "SELECT state <> 'idle' FROM pg_stat_activity WHERE pid = $1"

IS_THERE = """
    SELECT to_regnamespace($1) IS NOT NULL AS has_schema, to_regclass('meta') IS NOT NULL AS has_log
"""
LOCK_SCHEMA = "SELECT pg_advisory_xact_lock(hashtext('kvd'), hashtext($1))"
MAKE_SCHEMA = 'CREATE SCHEMA IF NOT EXISTS "{}"'
MAKE_TABLES = """
    CREATE TABLE IF NOT EXISTS meta (
        one bool PRIMARY KEY DEFAULT true CHECK (one), format int NOT NULL,
        cluster_id bytea NOT NULL, secret bytea NOT NULL,
        made_by text NOT NULL, made_at_ns bigint NOT NULL
    );
    CREATE TABLE IF NOT EXISTS head (
        one bool PRIMARY KEY DEFAULT true CHECK (one),
        base bigint NOT NULL DEFAULT 0, first bigint NOT NULL, epoch bigint NOT NULL DEFAULT 0,
        id bytea, name text, peer text, since_ns bigint,
        lease bigint NOT NULL DEFAULT 0, until timestamptz NOT NULL DEFAULT 'epoch'
    );
    CREATE TABLE IF NOT EXISTS log (
        seq bigint PRIMARY KEY, revision bigint NOT NULL, chain bytea NOT NULL, payload bytea
    ) WITH (
        autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 2000
    );
    ALTER TABLE log ALTER payload SET STORAGE EXTERNAL;
    CREATE TABLE IF NOT EXISTS replica (id bytea PRIMARY KEY, document bytea NOT NULL);
"""

_PROOF = """
    CASE WHEN current_setting('synchronous_standby_names') <> '' THEN
        pg_logical_emit_message(true, 'kvd', '')
    END
"""
_HINT = "pg_notify(current_schema(), '')"

FOUND = """
    WITH made AS (
        INSERT INTO meta (format, cluster_id, secret, made_by, made_at_ns)
        VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING 1
    ), headed AS (
        INSERT INTO head (first) SELECT $6 FROM made
    )
    INSERT INTO log (seq, revision, chain) SELECT $6, $6, $7 FROM made
"""
META = f"""
    SELECT meta.*, (SELECT count(*) FROM head) AS heads, EXISTS (SELECT FROM log) AS has_frames,
        {_PROOF} AS proof
    FROM meta
"""

APPEND = f"""
    WITH fence AS MATERIALIZED (
        SELECT base FROM head WHERE epoch = $1 AND first < $2 FOR UPDATE
    ), written AS (
        INSERT INTO log (seq, revision, chain, payload)
        SELECT $2, fence.base + $2, $4, $5 FROM fence
        WHERE EXISTS (SELECT FROM log WHERE seq = $2 - 1 AND chain = $3)
        ON CONFLICT DO NOTHING
        RETURNING {_HINT}
    )
    SELECT count(*) AS written FROM written
"""
LOOK = f"""
    WITH now AS MATERIALIZED (SELECT epoch, {_PROOF} AS proof FROM head)
    SELECT now.*, last.seq, last.chain, slot.chain AS slot
    FROM now, (SELECT seq, chain FROM log ORDER BY seq DESC LIMIT 1) AS last
        LEFT JOIN log AS slot ON slot.seq = $1
"""

STATE = "SELECT base, epoch, lease, until < clock_timestamp() AS is_over FROM head"
ELECT = f"""
    UPDATE head SET base = base + $2, epoch = base + $2 + (SELECT max(seq) FROM log),
        id = $3, name = $4, peer = $5, since_ns = $6, lease = $7,
        until = clock_timestamp() + $8::float8 * interval '1 second'
    WHERE base = $1 AND epoch = 0
    RETURNING epoch, {_HINT}
"""
"""In one vacancy, which has its own `base`, and in which the last frame is the last."""
VACATE = f"""
    UPDATE head SET base = base + 1, epoch = 0, lease = 0,
        id = NULL, name = NULL, peer = NULL, since_ns = NULL
    WHERE lease = $1 AND (until < clock_timestamp() OR NOT $2)
    RETURNING {_HINT}
"""
RENEW = """
    UPDATE head SET until = clock_timestamp() + $3::float8 * interval '1 second'
    WHERE lease = $1 AND epoch = $2
    RETURNING epoch
"""

PAGE = f"""
    WITH now AS MATERIALIZED (
        SELECT state.*, CASE WHEN state.last > $1 OR state.base <> $2 THEN {_PROOF} END AS proof
        FROM (
            SELECT *, (SELECT max(seq) FROM log) AS last,
                extract(epoch FROM until - clock_timestamp())::float8 AS left_s
            FROM head
        ) AS state
    )
    SELECT now.*, page.*
    FROM now LEFT JOIN (
        SELECT seq, revision, chain, payload,
            sum(octet_length(payload)) OVER (ORDER BY seq) - octet_length(payload) AS before
        FROM (
            SELECT seq, revision, chain, CASE WHEN seq > $1 THEN payload END AS payload
            FROM log WHERE seq >= $1 ORDER BY seq LIMIT {PAGE_FRAMES + 1}
        ) AS next
    ) AS page ON page.seq = $1 OR page.before < {PAGE_BYTES}
    ORDER BY page.seq
"""
"""The frames from $1 on, that one without its payload; a later page is needed if `last` is not in
it. `base` $2 is known. The row without payload that a log begins after is in no page but as $1."""

TRIM = """
    UPDATE head SET first = greatest(first, least($1, (SELECT max(seq) FROM log)))
    RETURNING first
"""
"""The last frame of an old snapshot is one that is there."""
DELETE = "DELETE FROM log WHERE seq < $1"
SIZES = """
    SELECT sum(pg_total_relation_size(oid))::bigint AS allocated,
        (SELECT coalesce(sum(pg_column_size(log.*)), 0)::bigint FROM log) AS used
    FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'
"""

REPORT = """
    INSERT INTO replica (id, document) VALUES ($1, $2)
    ON CONFLICT (id) DO UPDATE SET document = $2
"""
REPORTS = "SELECT id, document FROM replica"
FORGET = "DELETE FROM replica WHERE id = $1"


class Row(Protocol):
    """A row by the names of its columns."""

    def __getitem__(self, name: str, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Look:
    """The log at one moment: `slot` is the chain value of the frame that was looked for."""

    epoch: int
    end: End
    slot: bytes | None


def look_of(row: Row) -> Look:
    """The row of LOOK."""
    return Look(row["epoch"], End(row["seq"], row["chain"]), row["slot"])


def leadership_of(row: Row) -> Leadership:
    """The leadership in a row of PAGE."""
    if not row["epoch"]:
        return Leadership(row["base"] + row["last"])
    leader = Candidate(int.from_bytes(row["id"], "big"), row["name"], row["peer"], row["since_ns"])
    return Leadership(row["epoch"], leader, Lead(row["epoch"], row["lease"]))
