"""Documents: keys as text, for people and for diffs."""
