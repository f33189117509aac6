"""From the old five-state layer to the new one: hybrid layers, a router, and files."""
