"""The training step, and the optimizer it is made with."""
