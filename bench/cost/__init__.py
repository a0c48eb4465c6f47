"""The cost of a request, counted: `python -m bench.cost`."""
