"""What is looked after between trials: what the controller sees, keeping, going back."""
