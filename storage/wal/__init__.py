"""The log: appending, reading, scrubbing, and what is cut off."""
