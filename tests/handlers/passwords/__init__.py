"""Tests of password checks."""
