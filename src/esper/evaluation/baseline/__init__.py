"""How fast and how large Esper is, and whether a change made it worse."""
