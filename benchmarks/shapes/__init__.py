"""What changing shapes of batches cost."""
