"""Tests of handlers/extras/reading."""
