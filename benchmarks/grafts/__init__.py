"""What many grafts at one place cost."""
