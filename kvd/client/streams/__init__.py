"""Open streams, to iterate over: watches, followed subtrees, observed elections.

blocking.py     of a `Client`
asynchronous.py of an `AsyncClient`
"""
