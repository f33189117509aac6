"""The learned controller: what it sees, what it may do, the network that judges, and its weights."""
