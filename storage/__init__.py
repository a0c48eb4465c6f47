"""The storage engine: keeps bytes safe, and knows no rules. It never imports the rest of kvd.

    format/      every byte on the disk: frames, records, nodes, events, documents, names     pure
    wal/         the log                                                     = DATA/wal
    index/       the state in memory, and LMDB behind it                     = DATA/index
    snapshot/    files that shorten a replay                                 = DATA/snap
    directory/   whose the data directory is, where everything is, locks     = DATA
    tools/       what kvdctl does to a directory; no server uses it but for advice

Reading order: format/frame.py (the bytes of the log), wal/wal.py (the log), format/records.py (what
it says), index/state.py and index/flush.py (nodes, in memory and in LMDB), recovery.py (what a
start does), store.py (all of it as one thing).

What it takes for granted of the world:

1. fdatasync, once it has returned 0, means that the data is on stable storage; once it has failed
   it means nothing any more, so it is never asked twice.
2. A write that was not synced may reach the disk whole, in part, in any order, or not at all.
3. A new name is durable when its directory has been synced, not before.
4. What a dead process wrote stays in the page cache as long as neither the machine nor the mount
   goes; see index/environment.py.
5. Bits rot: every record carries a checksum, and a wrong one is refused, never served.
"""

if __name__ != "kvd.storage":
    # It would be there twice, with two of each class.
    raise ImportError("this folder is the package kvd.storage; import it by that name")
