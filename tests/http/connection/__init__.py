"""Tests of connections over sockets: whatever comes, the server outlives it."""
