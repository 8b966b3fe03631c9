"""Section 6: images a second that arrive on the GPU as normalized float32 views, two 224 px crops of each photograph.

No step runs. `benchmarks.speed.race.steady` describes which batches of a loader are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from adco.data.images import index_folder
from adco.utils.device import usable_cores
from benchmarks.on_gpu.sections import Context
from benchmarks.on_gpu.sections.shared import attempt, photographs
from benchmarks.speed.input import TWO, backends_for, our_loader, released_loader, uploaded
from benchmarks.speed.race import steady, steady_count
from benchmarks.speed.training import MOST_WORKERS

RELEASED_SECONDS, SMALL_SECONDS = 20.0, 2.0  # its processes start and make one pass; the same in miniature


def run(context: Context) -> None:
    """Time the default backend with several numbers of threads, the others with one, then the released loader."""
    index = index_folder(photographs(context, 16 if context.small else 1024))
    cores, device, batch = min(MOST_WORKERS, usable_cores()), context.device, 4 if context.small else 128
    most = max(1, cores - 2)
    main, *others = backends_for(device)
    ours = [(main, workers) for workers in dict.fromkeys((most, cores, min(8, cores)))]
    for backend, workers in [*ours, *((name, most) for name in others)]:
        make = partial(our_loader, index, TWO, backend, batch, workers, device=device)
        measured(context, f"{backend}/{workers}", make, lambda made: made.to_views(device), workers, batch, backend)
    if context.left() < (SMALL_SECONDS if context.small else RELEASED_SECONDS):
        context.skip(f"released/{cores}", f"{context.left():.0f} s were left of {context.seconds:.0f}")
        return
    make = partial(released_loader, index.root, TWO[0], batch, cores, device=device)
    measured(context, f"released/{cores}", make, partial(uploaded, device=device), cores, batch)


def measured(
    context: Context, name: str, make: Callable[..., Iterable], use: Callable, workers: int, batch: int,
    backend: str | None = None,
) -> None:  # fmt: skip
    """Report a loader's steady rate. make(count=...): one pass of the loader, of which so many batches are timed."""
    count = steady_count(workers, 2 if context.small else 20)
    with attempt(context, name):
        seconds, _ = steady(make(count=count), use, workers, count, context.device)
        facts = {"workers": workers, "batch": batch, "batches": count, "backend": backend}
        context.report(name, count * batch / seconds, "images/s", **facts)
