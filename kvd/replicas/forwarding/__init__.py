"""Writes that another replica is to decide: sent to the leader, done exactly once."""
