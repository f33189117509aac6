"""When a larger network gains something, in plain PyTorch: networks widened while they train, nothing of Esper."""
