"""Sparse autoencoders: read from files, trained at small scale, and read across models."""
