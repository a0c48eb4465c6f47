"""Settings of several servers with one store: the flags and their values."""
