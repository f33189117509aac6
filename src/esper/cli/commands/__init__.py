"""The commands of ``esper``: for each, what it takes and what it does."""
