"""The files of an etcd 2.0 to 3.5: write-ahead log and snapshots, and the v2 store that they hold.

protobuf.py    messages as fields
crc32c.py      the checksum
segments.py    records of the log's segments, each checked
log.py         what they say together
snapshot.py    the snapshot of the store
entries.py     what the entries of the log ask for
nodes.py       nodes and events
store.py       the rules of etcd's v2 store
users.py       users and roles
directory.py   a data directory as a whole
"""
