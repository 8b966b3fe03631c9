"""Speed, experiments and GPU measurements: run.py, evidence.py and gpu.py, with their parts below."""
