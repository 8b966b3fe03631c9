"""One section in this process, as benchmarks/gpu.py starts it: `python -m benchmarks.gpu_sections NUMBER ...`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from adco.device import resolve_device
from adco.errors import command
from benchmarks.gpu_sections import SECTIONS, Context


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int, choices=range(len(SECTIONS)))
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--file", type=Path, required=True)
    args = parser.parse_args(argv)
    device, section = resolve_device(args.device), SECTIONS[args.number]
    context = Context(section, device, device.type != "cuda", args.seconds, args.data, args.work, args.file)
    importlib.import_module(f"benchmarks.gpu_sections.{section.module}").run(context)
    return 0


if __name__ == "__main__":
    sys.exit(main())
