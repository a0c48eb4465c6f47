"""An HTTP/1.1 server that knows no key and no etcd."""
