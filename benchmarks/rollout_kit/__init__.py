"""What the rollout kit promises, measured."""
