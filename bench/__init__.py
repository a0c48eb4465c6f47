"""What kvd costs: load generators, pytest-benchmark suites and the comparison with etcd."""
