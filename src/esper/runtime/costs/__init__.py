"""What work costs in FLOPs."""
