"""What a request costs, counted: `python -m bench.cost`."""
