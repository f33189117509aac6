"""One script per claim. Each prints hardware, versions and spread, and keeps its results as JSON."""
