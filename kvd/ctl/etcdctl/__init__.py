"""The verbs of etcdctl: same arguments, output and exit status."""
