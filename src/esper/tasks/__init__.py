"""Small real data sets and the small host models that learn them."""
