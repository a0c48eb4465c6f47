"""Work next to the batches: flushes of the index, snapshots, scrubs of what is kept."""
