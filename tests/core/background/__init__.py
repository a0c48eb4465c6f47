"""Tests of core/background."""
