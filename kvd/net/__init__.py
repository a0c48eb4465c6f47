"""How bytes reach `kvd.http`: sockets, TLS, systemd."""
