"""Snapshots: taking, finding, reading and scrubbing them."""
