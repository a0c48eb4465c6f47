"""The engine in an etcd v3: its keys, the client over gRPC, and the tail of the log."""
