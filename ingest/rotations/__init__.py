"""Rotations between two models of one width: fitted on the same tokens, scored on others, beside what could explain them."""
