"""A small drawn world in the layouts of the real datasets: ImageNet, VOC 2007 and 2012, COCO 2017, Places205.

Twenty classes with VOC's names differ by silhouette, texture and usual colours, not by colour alone; eight scenes are
behind them. The scenes have names of Places205 and labels 0 to 7 in alphabetical order, so they are a subset of its 205
categories with labels of their own. Every image is a function of the seed, its subset and its number: a larger sample
starts with the images of a smaller one.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adco.sample.layouts import FOLDERS, Annotations, DrawTask, draw, jobs, make_folders, write_lists
from adco.utils.errors import UserError
from adco.utils.files import output_folder, write_text
from adco.utils.progress import progress as bar
from adco.utils.signals import starting_processes

SCHEMA = 1  # raise it when the same seed gives other bytes than before
MARKER, UNFINISHED = "sample.json", "sample.unfinished.json"
MIN_IMAGES, MAX_SEED = 100, 2**63 - 1


@dataclass(frozen=True)
class SampleSummary:
    """What `make_sample` has written.

    Attributes:
        out: The folder.
        seed: The seed.
        images: The number of images in ImageNet's training set.
        counts: The number of images by `LAYOUT SUBSET`.
        seconds: The duration.
        already_there: Whether the finished sample was there before, so that nothing was drawn.
    """

    out: Path
    seed: int
    images: int
    counts: dict[str, int]
    seconds: float
    already_there: bool


def make_sample(out: Path | str, seed: int, images: int, workers: int = 1, progress: bool = False) -> SampleSummary:
    """Draw the sample, unless it is there already. The bytes depend on `seed` and `images` alone.

    Args:
        out: A new or empty folder, or one with this sample.
        seed: From 0.
        images: The number of images in ImageNet's training set; the other sets follow from it (layouts.SUBSETS).
        workers: Processes that draw. More than one needs a main module that can be imported again, as those of tools/.
        progress: Whether to show a progress bar.

    Raises:
        UserError: For a number out of range, a folder with other content, or one that cannot be written.
    """
    out, start = Path(out), time.monotonic()
    _check_numbers(seed, images, workers)
    wanted = jobs(images)
    counts = dict(Counter(f"{job.layout} {job.subset}" for job in wanted))
    identity = json.dumps({"schema": SCHEMA, "seed": seed, "images": images}) + "\n"
    if _is_finished(out, json.loads(identity)):
        return SampleSummary(out, seed, images, counts, time.monotonic() - start, already_there=True)
    output_folder(out)
    write_text(out / UNFINISHED, identity)
    try:
        for folder in FOLDERS:  # files of an interrupted run, perhaps with another seed or size
            if (out / folder).exists():
                shutil.rmtree(out / folder)
        make_folders(out, wanted)
        with closing(_draw_all(out, seed, wanted, workers)) as drawing:  # when interrupted, its processes end here
            shown = bar(len(wanted), "drawing", "images", shown=progress, items=drawing)
            write_lists(out, list(zip(wanted, shown, strict=True)))
    except OSError as error:
        raise UserError(f"{out}: the sample cannot be written ({error.strerror or error})") from error
    write_text(out / MARKER, identity)
    (out / UNFINISHED).unlink()
    return SampleSummary(out, seed, images, counts, time.monotonic() - start, already_there=False)


def _check_numbers(seed: int, images: int, workers: int) -> None:
    if images < MIN_IMAGES:
        raise UserError(f"--images {images}: at least {MIN_IMAGES} are needed, so that every class occurs in every set")
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"--seed {seed}: expected a whole number from 0 to {MAX_SEED}")
    if workers < 1:
        raise UserError(f"--workers {workers}: expected 1 or more")


def _is_finished(out: Path, identity: dict) -> bool:
    """Whether `out` has exactly this sample. Raises UserError for other content than an interrupted sample."""
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return False
        if not out.is_dir():
            raise UserError(f"{out}: is a file, not a folder; choose another")
        if (out / UNFINISHED).exists():
            return False
        if not (out / MARKER).exists():
            raise UserError(f"{out}: is not empty and holds no sample; choose a new or empty folder")
        written = json.loads((out / MARKER).read_text())
    except OSError as error:
        raise UserError(f"{out}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{out / MARKER}: is not JSON ({error}); remove the folder, or choose another") from error
    if written != identity:
        raise UserError(f"{out}: holds another sample {written}, wanted {identity}; choose another folder")
    return True


def _draw_all(out: Path, seed: int, wanted: list[DrawTask], workers: int) -> Generator[Annotations, None, None]:
    """What `draw` returns for each image in order; drawn here or by several processes."""
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
