"""Tests of v2."""
