"""Where seeds and grafts meet a host: places, and what moves them in a step."""
