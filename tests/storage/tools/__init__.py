"""Tests of storage/tools."""
