"""A soak test of ten thousand connections: `python -m bench.soak`."""
