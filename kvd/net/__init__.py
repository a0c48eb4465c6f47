"""Transport below `kvd.http`: sockets, TLS, systemd."""
