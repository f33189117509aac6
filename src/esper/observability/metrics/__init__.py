"""What an operator sees of runs, as numbers with names: one catalogue, one fold of a run's lines, one exporter."""
