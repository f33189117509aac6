"""What growth is worth against fair controls."""
