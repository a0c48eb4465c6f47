"""Extras: parameters beyond etcd's v2 API, and values in other shapes. Pure."""
