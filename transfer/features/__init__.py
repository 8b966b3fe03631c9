"""Frozen features: how images are read, which features are extracted, and where they are cached."""
