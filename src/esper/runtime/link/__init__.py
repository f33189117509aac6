"""What joins a session to a message bus."""
