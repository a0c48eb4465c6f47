"""The offline tools of `kvdctl`; a server uses them only for advice at a refused start."""
