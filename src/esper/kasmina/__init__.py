"""Seeds inside host layers: state, grafts, lifecycle."""
