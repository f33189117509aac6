"""What happened: books, logs, and who is told."""
