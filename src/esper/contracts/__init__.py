"""The shared words: lifecycle, commands, reports, errors. Standard library only."""
