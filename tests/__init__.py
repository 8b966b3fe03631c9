"""The tests lie as the code does: tests/adco/data/test_loader.py tests adco/data/loader.py."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the checkout
