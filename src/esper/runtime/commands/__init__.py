"""What is asked of a run, and how seeds change their state."""
