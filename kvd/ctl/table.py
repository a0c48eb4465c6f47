"""The verbs of kvdctl: where each is, and its line in the help.

A verb is imported when it is named. An entry is `module:attribute`, below kvd.ctl; without place it
is a verb of `offline/`.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    """A verb.

    Attributes:
        place: the module and the attribute that is the command.
        text: its line in the help.
    """

    place: str
    text: str


OF_KEYS = {
    "get": Entry("etcdctl.values:get", "print the value of a key"),
    "set": Entry("etcdctl.values:set", "set a key"),
    "mk": Entry("etcdctl.values:mk", "create a key that is not there"),
    "update": Entry("etcdctl.values:update", "change the value of a key that is there"),
    "rm": Entry("etcdctl.directories:rm", "remove a key"),
    "ls": Entry("etcdctl.directories:ls", "list a directory"),
    "mkdir": Entry("etcdctl.directories:mkdir", "create a directory"),
    "setdir": Entry("etcdctl.directories:setdir", "make a directory, also of a file"),
    "updatedir": Entry("etcdctl.directories:updatedir", "change the TTL of a directory"),
    "rmdir": Entry("etcdctl.directories:rmdir", "remove an empty directory, or a key"),
    "watch": Entry("etcdctl.watching:watch", "print the next event of a key"),
    "exec-watch": Entry("etcdctl.watching:exec_watch", "run a command at each event of a key"),
    "cluster-health": Entry("etcdctl.cluster:cluster_health", "check the health of the members"),
    "member": Entry("etcdctl.cluster:member", "show and change the members"),
    "user": Entry("etcdctl.users:user", "show and change users"),
    "role": Entry("etcdctl.users:role", "show and change roles"),
    "auth": Entry("etcdctl.users:auth", "enable and disable users"),
}
OF_KVDCTL = {
    "tree": Entry("verbs.tree:command", "show all below a key as a tree"),
    "tail": Entry("verbs.tail:command", "print every event, over restarts of the server"),
    "history": Entry("verbs.history:history", "print the events of a key, newest first"),
    "diff": Entry("verbs.diff:diff", "show what differs between a document and the server"),
    "apply": Entry("verbs.diff:apply", "make the keys of the server those of a document"),
    "edit": Entry("verbs.edit:command", "change a value in an editor"),
    "txn": Entry("verbs.history:txn", "apply several changes together, or none"),
    "lock": Entry("verbs.lock:command", "run a command while a lock is held"),
    "completion": Entry("verbs.shells:completion", "print the completion script of a shell"),
    "replicas": Entry("verbs.replicas:command", "show the replicas of a store, or hand over"),
    "top": Entry("verbs.top:command", "show what a server does, once a second"),
}
MOVING = {
    "import": Entry("moving.import_verb:import_store", "import from etcd, or from a document"),
    "export": Entry("moving.export_verb:export", "export to a document, or to etcd v3"),
}
OF_FILES = {
    name: Entry("", text)
    for name, text in {
        "backup": "copy a store, of a running server too",
        "compact": "purge the log behind new snapshots and rebuild the index",
        "detach": "make the store of a replica one of its own",
        "digest": "print one hash of all keys, values, indexes and events",
        "du": "print what each part takes",
        "dump": "print the records of the log, one JSON object a line",
        "failpoints": "print the names that kvd --failpoint knows",
        "help": "print a page of the manual, or list its topics",
        "repair": "cut off the end of a damaged log; says only what it would do",
        "replicate-anew": "let a replica make a new log at its next start",
        "restore": "make a new store from a backup or a data directory",
        "verify": "check everything, and say whether a server would start",
    }.items()
}
VERBS = OF_KEYS | OF_KVDCTL | MOVING | OF_FILES
SECTIONS = (
    ("Verbs of a server", OF_KEYS),
    ("Verbs of a server that etcdctl does not have", OF_KVDCTL),
    ("Moving a store", MOVING),
    ("Verbs of a data directory", OF_FILES),
)
