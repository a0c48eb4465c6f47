"""The data directory: whose it is, where everything is in it, and its locks."""
