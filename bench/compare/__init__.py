"""The comparison with etcd: rows, measures, reports."""
