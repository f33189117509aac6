"""What a run and its candidates are worth."""
