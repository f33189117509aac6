"""What a run shows while it runs: a live display, plain lines, or a log for machines."""
