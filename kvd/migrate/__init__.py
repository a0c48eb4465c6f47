"""The ways in from etcd's v2 store, and out again: `kvdctl import` and `kvdctl export`."""
