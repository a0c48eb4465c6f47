"""Documents beside the keys: users, roles and members. Bytes to commands, commands to documents."""
