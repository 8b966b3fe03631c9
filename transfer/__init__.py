"""Benchmarks on frozen features."""
