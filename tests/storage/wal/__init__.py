"""Tests of storage/wal."""
