"""Features: what sets of signs say, and what they are checked against."""
