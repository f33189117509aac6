"""How the controller learns: drawn tasks, episodes on them, and training by what became of them."""
