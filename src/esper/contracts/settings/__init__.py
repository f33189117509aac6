"""The settings of growth, in one part for each reader."""
