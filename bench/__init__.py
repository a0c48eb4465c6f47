"""Measurements of kvd: load generators, pytest-benchmark suites and the comparison with etcd."""
