"""A page that follows runs while they go on: the report, fed by a record that grows."""
