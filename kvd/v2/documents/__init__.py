"""Documents outside the key space (users, roles, members): bytes to commands to documents. Pure."""
