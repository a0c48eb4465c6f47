"""Routes of the page `/ui`: its files, and the session of its visitor."""
