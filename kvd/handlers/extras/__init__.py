"""Routes and reads beyond etcd's v2 API, behind `--extras` and `--discovery`."""
