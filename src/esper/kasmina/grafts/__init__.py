"""What seeds grow: grafts, the arena they live in, their guard, their training in isolation."""
