"""Attacks on a server, with honest clients that must not notice: `python -m bench.attack`."""
