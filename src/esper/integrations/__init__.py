"""Where libraries of models meet Esper."""
