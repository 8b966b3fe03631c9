"""Run one section, as benchmarks/gpu.py starts it: `python -m benchmarks.on_gpu.sections NUMBER ...`.

At SIGTERM (its time limit), and when a library crashes, the stacks of all threads are printed.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from adco.evaluation.provenance import hardware
from adco.utils.device import resolve_device
from adco.utils.errors import Failure, UserError, one_line
from benchmarks.on_gpu.sections import SECTIONS, Context


def main(argv: Sequence[str] | None = None) -> int:
    """Run the section. Returns 0, 2 for a UserError or 1 for a Failure; other errors are raised."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("number", type=int, choices=range(len(SECTIONS)))
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--file", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        device, section = resolve_device(args.device), SECTIONS[args.number]
        with args.file.open("a") as file:
            file.write(json.dumps({"section": section.number, "hardware": hardware()}) + "\n")
        small = device.type != "cuda"
        if small:
            torch.set_num_threads(1)  # on a busy machine several threads wait for each other
        module = importlib.import_module(f"benchmarks.on_gpu.sections.{section.module}")  # before the clock starts
        module.run(Context(section, device, small, args.seconds, args.data, args.work, args.file))
    except (UserError, Failure) as error:
        print(one_line(error), file=sys.stderr)  # gpu.py reports the last line as the reason
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.register(signal.SIGTERM, chain=True)
    sys.exit(main())
