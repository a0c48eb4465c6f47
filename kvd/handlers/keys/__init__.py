"""The key space, `/v2/keys`: from a request to its answer."""
