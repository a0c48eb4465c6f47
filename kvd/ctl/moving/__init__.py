"""Verbs that move a store from etcd, to it, or to a document."""
