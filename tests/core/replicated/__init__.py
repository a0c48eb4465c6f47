"""Tests of core/replicated."""
