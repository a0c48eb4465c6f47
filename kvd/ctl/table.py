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
}
OF_FILES = {
    name: Entry("", text)
    for name, text in {
        "backup": "copy a store, of a running server too",
        "compact": "purge the log behind new snapshots and rebuild the index",
        "digest": "print one hash of all keys, values, indexes and events",
        "du": "print what each part takes",
        "dump": "print the records of the log, one JSON object a line",
        "failpoints": "print the names that kvd --failpoint knows",
        "help": "print a page of the manual, or list its topics",
        "repair": "cut off the end of a damaged log; says only what it would do",
        "restore": "make a new store from a backup or a data directory",
        "verify": "check everything, and say whether a server would start",
    }.items()
}
VERBS = OF_KEYS | OF_FILES
SECTIONS = (("Verbs of a server", OF_KEYS), ("Verbs of a data directory", OF_FILES))
