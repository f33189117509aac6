"""Training state on disk: written whole or not at all, verified by digest before it is trusted."""
