"""Fine-tune a detector from a pretraining checkpoint: convert it, then run detection/train_net.py.

    python benchmarks/experiments/detector.py --checkpoint CHECKPOINT -- [arguments of train_net.py] OUTPUT_DIR FOLDER

`random:ARCH` is not converted: the config must be one that starts from random weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from adco.utils.errors import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Convert and fine-tune; returns the exit code of what fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("words", nargs="+", help="arguments of train_net.py, after --; the last is the output folder")
    args = parser.parse_args(argv)
    weights = []
    if not args.checkpoint.startswith("random:"):
        converted = Path(args.words[-1]) / "backbone.pkl"
        converted.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([sys.executable, "tools/convert_to_d2.py", args.checkpoint, str(converted)])
        if done.returncode:
            return done.returncode
        weights = ["MODEL.WEIGHTS", str(converted)]
    words = [*args.words[:-2], *weights, *args.words[-2:]]
    return subprocess.run([sys.executable, "detection/train_net.py", *words]).returncode


if __name__ == "__main__":
    sys.exit(main())
