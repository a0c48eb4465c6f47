"""Every byte on the disk: frames, records, nodes, events, documents, names. Pure."""
