"""Blueprints that nobody wrote: what they are made of, as data, and how that becomes a blueprint."""
