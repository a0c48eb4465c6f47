"""The log of several replicas in a PostgreSQL."""
