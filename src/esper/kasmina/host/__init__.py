"""How a host is opened up: choosing and measuring places, swapping classes, export."""
