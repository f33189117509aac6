"""Channels that several layers share: which they are, and how new ones travel beside the host's."""
