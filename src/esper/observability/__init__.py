"""What a run directory tells, without torch: in plain words, as tables, as a page. Every number names its source."""
