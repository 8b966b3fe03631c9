"""Races against what others do, in one run."""
