"""kvd: a durable configuration store that serves the etcd v2 HTTP API from one process.

The way of a write:

    client -- PUT /v2/keys/a -->  http/connection.py      bytes to requests: the connections
                                  handlers/router.py  what comes before routing; the fork to other routes
                                  handlers/keys/key_space.py  a request to the key space, to its answer
                                  v2/request.py    parameters, checked, to a command
                                  core/committer.py  the queue, one batch at a time:
        machine.decide            the rules: a command to a change, or a refusal
        storage.Pending.change    the change to nodes, pending, invisible
        storage.Wal.append        one frame, one fdatasync: the durability point
        storage.Store.commit      visible, in memory
        watch.Hub.publish         watchers are told, then the writers answered
    client <-- 200 {"action"...   v2/response.py   events to JSON

Nearly all requests take a shorter way: handlers/keys/short_way.py is front, keys and v2/request.py
in one step, and handlers/keys/outcomes.py makes their answers. What is declined there goes the way
above, which answers everything.

Users and roles go the same way: handlers/auth.py, v2/auth.py and v2/auth_commands.py for the rules,
entries in the log; handlers/authorizer.py asks for them, handlers/passwords.py checks passwords.

Some hundred changes later core/flusher.py has the index written (storage/index/state.py,
storage/index/flush.py). A read is request, committed state, response; it never enters the
committer. handlers/keys/value_cache.py keeps the JSON of files that are written or read,
handlers/keys/listing.py reads directories, handlers/keys/listing_cache.py keeps what it made and
brings it up to date. core/disk_space.py knows whether there is room, core/housekeeping.py takes
snapshots, server.py wires it all, handlers/info.py has the small endpoints, and ctl/main.py is
kvdctl. Settings: config/flags.py is the table, config/sources.py and config/file.py collect their
texts, config/load.py says what they mean. Connections come through net/listeners.py (addresses),
net/acceptor.py, and net/tls.py with net/tls_connection.py; http/framing.py and http/header_cache.py
read what is ahead of a body, http/outbox.py and http/sending.py send what is large. To know the
system, read v2/rules.py, core/committer.py and storage/wal/wal.py, in that order.

kvd is not a cluster, has no v3 API, and keeps nothing that the log does not say.
"""

__version__ = "0.1.0"
