"""What it costs to watch a run, and whether what is shown is so."""
