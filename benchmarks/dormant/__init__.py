"""What a thousand dormant seeds cost."""
