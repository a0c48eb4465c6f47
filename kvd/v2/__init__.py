"""The etcd v2 API without I/O: requests to commands, commands to changes, events to JSON. Pure."""
