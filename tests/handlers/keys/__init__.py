"""Tests of handlers/keys."""
