"""Which neurons write a feature, and what they say in words."""
