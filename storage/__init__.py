"""The storage engine: keeps bytes safe, and knows no rules. It never imports the rest of kvd.

README.md in this folder has the folders, the import rules, the file formats, recovery step by step,
what is assumed about the disk and what damage means. Read format/frame.py (the bytes of the log),
wal/wal.py (the log), format/records.py (what it says), index/state.py and index/flush.py (nodes, in
memory and in LMDB), recovery.py (what a start does) and store.py (all of it as one thing).
"""

if __name__ != "kvd.storage":
    # It would be there twice, with two of each class.
    raise ImportError("this folder is the package kvd.storage; import it by that name")
