"""Every part of a running server, made and connected from top to bottom."""
