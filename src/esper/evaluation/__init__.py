"""Judges: what growth is worth against fair controls."""
