"""Turns a flag on step by step, looks at runs between the steps, and takes it back when they get worse."""
