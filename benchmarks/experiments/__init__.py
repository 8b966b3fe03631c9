"""The experiments behind docs/evidence.md."""
