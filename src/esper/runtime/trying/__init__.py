"""Trying candidates: rounds, live trials, arms, and steps that are taken once more."""
