"""How fast the message bus is, and what becomes of messages when processes die."""
