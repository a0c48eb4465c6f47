"""Reads beyond etcd's v2 API: pages, shapes, scans, several keys at once."""
