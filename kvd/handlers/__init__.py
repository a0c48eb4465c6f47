"""Routes: which there are, who may use them, and what is kept of their answers."""
