"""What happens in a run, shown by experiment trackers: TensorBoard, Weights & Biases, MLflow, trackio."""
