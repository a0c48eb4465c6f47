"""Reading HTTP/1.1 requests, without a socket: heads, bodies, and a cache of header blocks."""
