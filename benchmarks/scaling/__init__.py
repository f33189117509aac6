"""What Esper takes on many GPUs: memory, traffic and time, from what was measured."""
