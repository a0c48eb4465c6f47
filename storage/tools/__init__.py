"""What `kvdctl` does to a directory; no server uses it but for advice at a refused start."""
