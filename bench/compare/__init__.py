"""kvd beside etcd: rows, measures, reports."""
