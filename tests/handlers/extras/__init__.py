"""Tests of handlers/extras."""
