"""Tests of http/parsing."""
