"""Tests of core/watch."""
