"""Health and metrics, their routes and their listeners."""
