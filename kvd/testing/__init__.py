"""For programs that test against kvd, and for experiments with crashes.

Nothing in here is imported by the server or by the client. A module is imported by its full name
(`kvd.testing.plugin`), so that one which needs a server loads it for its own users alone.
"""
