"""kvd: a durable configuration store that serves the etcd v2 HTTP API from one process.

    config/      the command line, the environment, a file of settings -> one frozen Config   pure
    v2/          the etcd v2 API without I/O: request -> command -> change -> event -> JSON   pure
    limits/      what is shared out among clients: turns of the loop, memory, places
    core/        the order of a write; watches; clock; housekeeping
    http/        an HTTP/1.1 server, which knows no key and no etcd
    net/         sockets, TLS, systemd: how bytes reach http/
    handlers/    routes, who may use them, what is kept of answers; handlers/keys/ is the key space
    monitoring/  health, metrics, their routes and listeners
    ctl/         kvdctl
    storage/     the storage engine; it knows nothing of the rest

The way of a write:

    client -- PUT /v2/keys/a -->  http/connection.py          bytes to requests
                                  handlers/router.py          what comes before routing
                                  handlers/keys/key_space.py  a request to its answer
                                  v2/request.py               parameters to a command
                                  core/committer.py           the queue, one batch at a time:
        v2/rules.decide               the rules: a command to a change, or a refusal
        storage Pending.change        the change to nodes, pending, invisible
        storage Wal.append            one frame, one fdatasync: the durability point
        storage Store.commit          visible, in memory
        core/watch Hub.publish        watchers are told, then the writers answered
    client <-- 200 {"action"...   v2/response.py              events to JSON

Nearly all requests take a shorter way: handlers/keys/short_way.py is router, key space and request
in one step, and outcomes.py makes their answers. What is declined there goes the way above, which
answers everything. A read is request, committed state, response; it never enters the committer.
server.py wires it all. To know the system, read v2/rules.py, core/committer.py and
storage/wal/wal.py, in that order.

kvd is not a cluster, has no v3 API, and keeps nothing that the log does not say.
"""

__version__ = "0.1.0"
