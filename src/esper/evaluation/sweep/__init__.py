"""A population of runs: which there are, what became of each, and what that says of their settings."""
