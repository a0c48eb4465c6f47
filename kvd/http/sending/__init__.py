"""Sending HTTP/1.1 responses: in which order, and no faster than clients read."""
