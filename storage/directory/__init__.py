"""The data directory: its owner, its layout and its locks."""
