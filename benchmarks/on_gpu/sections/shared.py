"""Used by several sections: photographs on disk, figures that may fail without ending a section, earlier figures."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from adco.train.failures import is_out_of_memory
from adco.utils.device import usable_cores
from adco.utils.errors import one_line
from benchmarks.on_gpu.sections import Context
from benchmarks.speed.photographs import jpeg, photograph

WIDTH, HEIGHT, CLASSES = 500, 375, 2
FEW = 32  # photographs are drawn sooner than processes have started


def photographs(context: Context, count: int) -> Path:
    """Draw `work/photographs/CLASS/N.jpg`: at least `count` JPEGs of 500 x 375 pixels; returns the folder.

    Only those that are missing are drawn, by as many processes as there are cores. Each file is moved to its place
    when it is complete.
    """
    root = context.work / "photographs"
    names = {number: root / f"class{number % CLASSES}" / f"{number:05d}.jpg" for number in range(count)}
    missing = [number for number, path in names.items() if not path.is_file()]
    for path in names.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=context.work) as folder:
        drawn = [Path(folder) / f"{number}.jpg" for number in missing]
        if len(missing) <= FEW:
            list(map(_draw, missing, drawn))
        else:  # spawned: a fork would copy the locks of CUDA's threads
            with ProcessPoolExecutor(usable_cores(), multiprocessing.get_context("spawn")) as pool:
                list(pool.map(_draw, missing, drawn, chunksize=8))
        for number, path in zip(missing, drawn, strict=True):
            os.replace(path, names[number])
    return root


@contextmanager
def attempt(context: Context, name: str) -> Iterator[None]:
    """Report an exception in the block as the reason why a figure is missing, so that the section continues.

    Unused memory is released first: the exception of a figure that failed before may have kept it until now.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            context.skip(name, "out of memory")
        else:
            traceback.print_exc()
            context.report(name, None, reason=f"failed: {type(error).__name__}: {one_line(error)[:300]}")


def figures(context: Context, section: int) -> dict[str, dict]:
    """The figures of another section: the newest line of each name."""
    lines = map(json.loads, context.file.read_text().splitlines()) if context.file.is_file() else ()
    return {line["name"]: line for line in lines if line.get("section") == section and "name" in line}


def _draw(number: int, path: Path) -> None:
    path.write_bytes(jpeg(photograph(number, WIDTH, HEIGHT)))
