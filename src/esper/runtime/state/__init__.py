"""Capturing and restoring a run; the batches that it remembers."""
