"""Tests of storage/format."""
