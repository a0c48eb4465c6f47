"""Three servers with one store, kvd and etcd by turns: `python -m bench.replicas`."""
