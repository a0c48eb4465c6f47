"""Tests of storage/index."""
