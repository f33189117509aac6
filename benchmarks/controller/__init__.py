"""Controllers against the heuristic one: an exam on real data that was fixed before any of them was trained."""
