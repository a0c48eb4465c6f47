"""The command `kvdctl`."""
