"""The message bus: what it promises, and one file for each transport."""
