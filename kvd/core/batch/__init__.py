"""One batch: commands, expirations and documents decided into records, and their responses."""
