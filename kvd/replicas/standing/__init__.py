"""A replica's standing, as routes, health and metrics show it; the parts of a replica note it."""
