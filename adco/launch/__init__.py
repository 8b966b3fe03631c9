"""Processes and clusters: jobs side by side, their display, SLURM."""
