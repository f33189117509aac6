"""What seeds are: their state, their chunks, what they sense."""
