"""Load generators: `python -m bench.load`."""
