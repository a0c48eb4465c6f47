"""Tests of storage/directory."""
