"""Care for the log in the engine: reports of the replicas, trimming, room."""
