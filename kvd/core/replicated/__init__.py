"""Batches of a replica: those that another member has decided, and the ids of requests."""
