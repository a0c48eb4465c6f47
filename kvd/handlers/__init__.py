"""Routes, the authorization of requests, and caches of responses."""
