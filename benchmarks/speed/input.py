"""Our input pipeline against those of the released AdCo, lightly and solo-learn: on one core, and whole loaders.

    python benchmarks/run.py input [--quick] [--device cuda] [--data FOLDER] [--reference CLONE]

The references are re-statements (reference_views.py). `--reference CLONE` times the transforms of a clone of the
released code, too. Images are generated JPEGs of 500 x 375, or those of `--data FOLDER`.

Loaders are timed until normalized float32 views are on the device: with 1, 8 and 16 threads (processes in the released
loader) as far as there are cores, 1 and 2 on a small machine. `race.steady` describes which batches are timed.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision import datasets

from adco.config.schema import ViewConfig
from adco.data import native
from adco.data.batch import Batch
from adco.data.images import ImageIndex, index_folder
from adco.data.loader import ViewDataset, batches, requests, resolve_backend
from adco.data.transforms import parameters
from adco.utils.device import usable_cores
from adco.utils.errors import UserError
from benchmarks.speed.photographs import write_photographs
from benchmarks.speed.race import Options, Outcome, Ratio, Timing, race, ratio, steady, steady_count, steady_length
from benchmarks.speed.reference_views import SMALLER, Views, clone_views, lightly_view, released_view, solo_learn_view

TWO = (ViewConfig(), ViewConfig())
SIX = (ViewConfig(), *(ViewConfig(px=px, scale=[low, high]) for px, low, high in SMALLER))
CPU = torch.device("cpu")
NAMES = {1: "one", 2: "two"}  # of numbers of workers in names of ratios


TWO_RELEASED = Views([released_view()] * 2)
SIX_RELEASED = Views([released_view(spec.px, spec.scale) for spec in SIX])


def run(options: Options) -> Outcome:
    """Race two crops and key + 5 crops on one core, then loaders with several numbers of workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = options.data or write_photographs(Path(folder), 64 if options.quick else 128, 2, 500, 375)
            return _run(options, index_folder(root))
    finally:
        torch.set_num_threads(threads)


def _run(options: Options, index: ImageIndex) -> Outcome:
    count = min(len(index), 16 if options.quick else 32)
    files = [index.read(i) for i in range(count)]
    with_clone = clone_views(options.reference) if options.reference else {}
    two = {
        "released, two crops": partial(_by_pillow, files, TWO_RELEASED),
        "lightly, two crops": partial(_by_pillow, files, Views([lightly_view()] * 2)),
        "solo-learn, two crops": partial(_by_pillow, files, Views([solo_learn_view()] * 2)),
        "ours, two crops": _ours(index, files, TWO, full=True),
        "ours, crops only": _ours(index, files, TWO, full=False),
        "Pillow, decode only": partial(_by_pillow, files, np.asarray),
        **{f"clone, {name}": partial(_by_pillow, files, made) for name, made in with_clone.items() if "two" in name},
    }
    six = {
        "released, key + 5 crops": partial(_by_pillow, files, SIX_RELEASED),
        "ours, key + 5 crops": _ours(index, files, SIX, full=True),
        **{f"clone, {name}": partial(_by_pillow, files, made) for name, made in with_clone.items() if "5" in name},
    }
    timings = race(two, options.rounds, count) | race(six, options.rounds, count)
    counts, ratios = worker_counts(usable_cores()), []
    for workers in counts:
        loaders = race_loaders(index, workers, options)
        timings |= loaders
        ratios += loader_ratios(loaders, workers)
    settings = {"backend": resolve_backend("auto", CPU, 2), "fast_jpeg": native.fast_jpeg(), "cores": 1}
    settings |= {"loader_workers": list(counts), "device": options.device.type}
    return Outcome(
        unit="image",
        timings=list(timings.values()),
        ratios=[*ratios, *_ratios(timings)],
        scores={"mean_jpeg_kb": sum(map(len, files)) / count / 1e3},
        data=options.data.name if options.data else "generated photographs, 500 x 375",
        settings=settings,
        notes=[] if options.reference else ["the clone of the released code: not run (--reference)"],
    )


def _ratios(timings: dict[str, Timing]) -> list[Ratio]:
    two, six = timings["ours, two crops"], timings["ours, key + 5 crops"]
    others = [ratio(f"input.two_crops_vs_{n}", timings[f"{n}, two crops"], two, 4) for n in ("lightly", "solo-learn")]
    if "clone, two crops" in timings:
        others.append(ratio("input.two_crops_vs_clone", timings["clone, two crops"], two, 4))
        others.append(ratio("input.key_and_5_crops_vs_clone", timings["clone, key + 5 crops"], six, 7))
    return [
        *others,
        ratio("input.key_and_5_crops", timings["released, key + 5 crops"], six, 7),
        ratio("input.two_crops", timings["released, two crops"], two, 4),
    ]


def _by_pillow(files: Sequence[bytes], transform: Callable) -> None:
    for file in files:
        with Image.open(io.BytesIO(file)) as image:
            transform(image.convert("RGB"))


def _ours(index: ImageIndex, files: Sequence[bytes], specs: Sequence[ViewConfig], full: bool) -> Callable[[], None]:
    """The native backend, as one worker thread runs it; without the kernel the backend that is then used."""
    samples = np.arange(len(files))
    if not native.available():
        dataset = ViewDataset(index, specs, 0, 0, "device")
        request = next(requests(0, len(files), len(files), 0, 1))
        return lambda: dataset[request].to_views(CPU) if full else dataset[request]
    dtype = np.float32 if full else np.uint8
    out = [np.empty((len(files), spec.px, spec.px, 3), dtype) for spec in specs]

    def work() -> None:
        draws = [parameters.sample_params(spec, 0, 0, samples, number) for number, spec in enumerate(specs)]
        canvas = native.Canvas([spec.scale for spec in specs], draws, out, full)
        for row, file in enumerate(files):
            if not canvas.jpeg(row, file):
                canvas.pixels(row, np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))

    return work


def worker_counts(cores: int) -> tuple[int, ...]:
    """The numbers of workers that loaders are timed with."""
    return tuple(count for count in ((1, 8, 16) if cores >= 8 else (1, 2)) if count <= cores)


def race_loaders(index: ImageIndex, workers: int, options: Options) -> dict[str, Timing]:
    """Race our backends and the released loader: two 224 px crops, until the views are on the device."""
    device, count = options.device, steady_count(workers, 16)
    batch = min(len(index), 8 if options.quick else 32)
    theirs = released_loader(index.root, TWO[0], batch, workers, count, device)

    def ours(backend: str) -> Callable[[], float]:
        def work() -> float:
            made = our_loader(index, TWO, backend, batch, workers, count, device)
            return steady(made, lambda views: views.to_views(device), workers, count, device)[0]

        return work

    contestants = {f"{backend}, {workers} workers": ours(backend) for backend in backends_for(device)}
    use = partial(uploaded, device=device)
    contestants[f"released, {workers} workers"] = lambda: steady(theirs, use, workers, count, device)[0]
    return race(contestants, options.rounds, batch * count, device)


def loader_ratios(timings: dict[str, Timing], workers: int) -> list[Ratio]:
    """The ratio of every backend to the released loader, that of the default backend last."""
    name, reference = NAMES.get(workers, workers), timings[f"released, {workers} workers"]
    main, *others = (timing for timing in timings.values() if timing is not reference)
    more = [ratio(f"input.{t.name.split(',')[0]}_{name}_workers", reference, t, 1) for t in others]
    return [*more, ratio(f"input.loader_{name}_workers", reference, main, 4.5)]


def backends_for(device: torch.device) -> tuple[str, ...]:
    """The backends that are timed, the default of `auto` first."""
    cpu = "native" if native.available() else "device"
    return tuple(dict.fromkeys((cpu, "device", "nvjpeg"))) if device.type == "cuda" else (cpu,)


def our_loader(
    index: ImageIndex,
    specs: Sequence[ViewConfig],
    backend: str,
    batch: int,
    workers: int,
    count: int,
    device: torch.device,
) -> Iterable[Batch]:
    """One pass of our loader, for `steady`. Its threads are started for each pass, which takes no time."""
    wanted = requests(0, len(index), batch, 0, steady_length(workers, count))
    return batches(ViewDataset(index, specs, 0, 0, backend), wanted, workers, device)


def released_loader(
    root: Path, view: ViewConfig, batch: int, workers: int, count: int, device: torch.device
) -> DataLoader:
    """The released loader of two views; each iteration is a pass for `steady`. Its processes are kept between passes.

    With a GPU they are spawned: a fork would copy the locks of CUDA's threads.

    Args:
        root: A folder with CLASS/*.jpg.
        view: The size and scale of a crop.
        batch: Images of a batch.
        workers: How many processes.
        count: How many batches `steady` times.
        device: Where the views go.

    Raises:
        UserError: When the batches that are made ahead do not fit into shared memory.
    """
    _check_shared_memory((2 * workers + 2) * batch * 2 * 3 * view.px**2 * 4)
    folder = datasets.ImageFolder(str(root), Views([released_view(view.px, view.scale)] * 2))
    sampler = RandomSampler(folder, num_samples=steady_length(workers, count) * batch)
    cuda = device.type == "cuda"
    return DataLoader(
        folder, batch, sampler=sampler, num_workers=workers, drop_last=True, pin_memory=cuda, persistent_workers=True,
        multiprocessing_context="spawn" if cuda else None,
    )  # fmt: skip


def uploaded(batch: Sequence, device: torch.device) -> list[torch.Tensor]:
    """Copy the views of a batch of the released loader to the device."""
    return [view.to(device, non_blocking=True) for view in batch[0]]


def _check_shared_memory(needed: int) -> None:
    place = Path("/dev/shm")
    free = shutil.disk_usage(place).free if place.is_dir() else needed
    if free < needed:
        raise UserError(
            f"{place}: the released loader needs {needed >> 20} MiB of shared memory, and {free >> 20} are free; "
            "start the container with --ipc=host or --shm-size"
        )
