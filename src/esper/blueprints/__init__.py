"""What a seed may become: one family per file, one catalogue."""
