"""What benchmarks/gpu.py runs on a machine with a GPU, packs for it and makes of the results."""
