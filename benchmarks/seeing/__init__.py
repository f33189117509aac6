"""What it costs to be seen: the live display, the logs, the report."""
