"""The stage `features`: what sign codes encode, and the controls that each figure stands beside."""
