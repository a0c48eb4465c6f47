"""Tests of http/sending."""
