"""What is shared out among clients: turns of the loop, memory, places."""
