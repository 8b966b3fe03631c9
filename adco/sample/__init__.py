"""A small drawn world in the layouts of the real data sets: ImageNet, VOC 2007 + 2012, COCO 2017, Places205.

Twenty classes with VOC's names are told apart by silhouette, texture and their usual liveries, not by colour alone;
eight scenes lie behind them. The scenes carry names of Places205 and labels 0..7 in alphabetical order, so they are a
subset of its 205 categories with labels of their own. Every picture is a function of (seed, subset, its number): a
larger sample begins with the smaller one's pictures.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adco.sample.layouts import FOLDERS, DrawTask, draw, jobs, make_folders, write_lists
from adco.utils.errors import UserError
from adco.utils.files import output_folder, write_text
from adco.utils.progress import progress as bar
from adco.utils.signals import starting_processes

SCHEMA = 1  # raise it when the same seed gives other bytes than before
MARKER, UNFINISHED = "sample.json", "sample.unfinished.json"
MIN_IMAGES, MAX_SEED = 100, 2**63 - 1


@dataclass(frozen=True)
class SampleSummary:
    """counts: pictures by `layout subset`; already_there: nothing had to be drawn."""

    out: Path
    seed: int
    images: int
    counts: dict[str, int]
    seconds: float
    already_there: bool


def make_sample(out: Path | str, seed: int, images: int, workers: int = 1, progress: bool = False) -> SampleSummary:
    """Draw the sample into `out`, or find it there finished. The bytes do not depend on `workers`.

    images: pictures of ImageNet's training set; the other sets follow from it (see layouts.SUBSETS).
    workers: processes that draw; more than one needs a main module that can be imported again (as tools/ are).
    Raises UserError for a bad number, a folder that holds something else, or one that cannot be written.
    """
    out, began = Path(out), time.monotonic()
    _check_numbers(seed, images, workers)
    wanted = jobs(images)
    counts = dict(Counter(f"{job.layout} {job.subset}" for job in wanted))
    identity = json.dumps({"schema": SCHEMA, "seed": seed, "images": images}) + "\n"
    if _is_finished(out, json.loads(identity)):
        return SampleSummary(out, seed, images, counts, time.monotonic() - began, already_there=True)
    output_folder(out)
    write_text(out / UNFINISHED, identity)
    try:
        for folder in FOLDERS:  # what an interrupted run left, perhaps of another seed or size
            if (out / folder).exists():
                shutil.rmtree(out / folder)
        make_folders(out, wanted)
        with closing(_draw_all(out, seed, wanted, workers)) as drawing:  # when interrupted, its processes end here
            shown = bar(len(wanted), "drawing", "pictures", shown=progress, items=drawing)
            write_lists(out, list(zip(wanted, shown, strict=True)))
    except OSError as error:
        raise UserError(f"{out}: the sample cannot be written ({error.strerror or error})") from error
    write_text(out / MARKER, identity)
    (out / UNFINISHED).unlink()
    return SampleSummary(out, seed, images, counts, time.monotonic() - began, already_there=False)


def _check_numbers(seed: int, images: int, workers: int) -> None:
    if images < MIN_IMAGES:
        raise UserError(f"--images {images}: at least {MIN_IMAGES} are needed, so that every class occurs in every set")
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"--seed {seed}: expected a whole number from 0 to {MAX_SEED}")
    if workers < 1:
        raise UserError(f"--workers {workers}: expected 1 or more")


def _is_finished(out: Path, identity: dict) -> bool:
    """Whether `out` holds this very sample. Raises UserError when it holds anything else but an interrupted sample."""
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return False
        if not out.is_dir():
            raise UserError(f"{out}: is a file, not a folder; choose another")
        if (out / UNFINISHED).exists():
            return False
        if not (out / MARKER).exists():
            raise UserError(f"{out}: is not empty and holds no sample; choose a new or empty folder")
        found = json.loads((out / MARKER).read_text())
    except OSError as error:
        raise UserError(f"{out}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{out / MARKER}: is not JSON ({error}); remove the folder, or choose another") from error
    if found != identity:
        raise UserError(f"{out}: holds another sample {found}, wanted {identity}; choose another folder")
    return True


def _draw_all(out: Path, seed: int, wanted: list[DrawTask], workers: int) -> Iterator[object]:
    """The jobs' records in order, drawn here or by `workers` processes."""
    work = partial(draw, out, seed)
    if workers == 1:
        yield from map(work, wanted)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        with starting_processes():
            drawing = pool.map(work, wanted, chunksize=8)
        yield from drawing
    finally:
        pool.shutdown(cancel_futures=True)
