"""Frozen features: how images are read, what is extracted, and where it is kept."""
