"""Helpers of the tests: servers, stores, models, certificates."""
