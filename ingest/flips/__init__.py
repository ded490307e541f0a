"""What happens when a feature's signs are flipped."""
