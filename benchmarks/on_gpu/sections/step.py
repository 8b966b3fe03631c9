"""Section 4: the training step of AdCo (ResNet-50, 224 px, batch 256, two crops, a bank of 65,536) in every variant.

`eager` is the default step, in bf16. Every other contestant of speed/step.py is raced against it, two steps in
succession in each turn. The most important figures come first; what is compiled takes most of a minute to start.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.on_gpu.sections import Context
from benchmarks.on_gpu.sections.shared import attempt
from benchmarks.speed.race import ROUNDS, race, ratio, repeated
from benchmarks.speed.shares import PARTS, parts_of
from benchmarks.speed.step import Step, contestants, our_trainer, recipe_for
from benchmarks.speed.times import bank_step

ORDER = (
    "bare", "released", "fp16", "tf32", "float32", "compiled", "graphs",
    "contiguous", "released, tf32", "unfused", "bare, compiled",
)  # fmt: skip
COMPILED = ("compiled", "graphs", "bare, compiled")
QUICK_SECONDS, COMPILED_SECONDS = 8.0, 30.0  # a contestant is started on a GPU when so much time is left
SMALL_SECONDS = 1.0  # the same in miniature


def run(context: Context) -> None:
    """Race the contestants, the most important first, as far as the time allows."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_for(context.device, context.small)
        makers = contestants(recipe, context.device, Path(folder))
        make_eager = functools.cache(makers.pop("ours"))
        measured(context, "eager", make_eager, {}, recipe.batch)
        eager = make_eager()
        if enough(context, "shares", QUICK_SECONDS):
            with attempt(context, "shares"):
                shares(context, Path(folder))
        for name in (n for n in ORDER if n in makers):
            if context.small and name in COMPILED:
                context.skip(name, "compiling takes a minute on a CPU")
            elif enough(context, name, COMPILED_SECONDS if name in COMPILED else QUICK_SECONDS):
                measured_beside(context, name, makers[name], eager, recipe.batch)


def enough(context: Context, name: str, seconds: float) -> bool:
    """Whether so much time is left; otherwise the figure is reported as not run."""
    if context.left() >= (SMALL_SECONDS if context.small else seconds):
        return True
    context.skip(name, f"{context.left():.0f} s were left of {context.seconds:.0f}")
    return False


def measured_beside(context: Context, name: str, make: Callable[[], Step], eager: Step, batch: int) -> None:
    """Race a contestant against the eager step and report its figures. Its memory is released afterwards."""
    with attempt(context, name):
        measured(context, name, make, {"eager": eager}, batch)


def measured(context: Context, name: str, make: Callable[[], Step], reference: dict[str, Step], batch: int) -> None:
    """Race a contestant and report its images a second, milliseconds a step, peak memory and relative speed.

    Args:
        context: The section's.
        name: The contestant's name.
        make: Makes its step.
        reference: The step that it is raced against by its name; empty for none.
        batch: The number of images of a step.
    """
    device, steps, rounds = context.device, *((1, 2) if context.small else (2, ROUNDS))
    held = memory(device)
    step = make()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    context.report(f"{name}/first_step", time.perf_counter() - start, "s", **inductor_cache())
    works = {key: repeated(work, steps) for key, work in {**reference, name: step}.items()}
    timings = race(works, rounds, steps * batch, device)
    timing = timings[name]
    context.report(f"{name}/images_per_second", timing.rate, "images/s", rounds=rounds, steps_a_round=steps)
    context.report(f"{name}/step", 1000 * timing.median / steps, "ms", spread=timing.spread)
    for key in reference:
        context.report(f"{name}/speed_over_{key}", ratio("", timings[key], timing, 1).value, "times")
    if device.type == "cuda":
        allocated, reserved = peak_gib(step, device, held)
        context.report(f"{name}/peak_memory", allocated, "GiB", reserved_gib=reserved)


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes of the GPU that tensors occupy, and that torch has reserved; 0 on a CPU."""
    if device.type != "cuda":
        return 0, 0
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)


def peak_gib(step: Step, device: torch.device, held: tuple[int, int]) -> tuple[float, float]:
    """GiB at the peak of a step beyond what was `held` before its network was made: allocated by tensors, and reserved
    from the GPU (only the latter includes the memory that graphs keep)."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return (allocated - held[0]) / 2**30, (reserved - held[1]) / 2**30


def shares(context: Context, folder: Path) -> None:
    """Report the share of each part of the step, timed alone: encoder, key encoder, bank, optimiser, moving average."""
    trainer = our_trainer(recipe_for(context.device, context.small), context.device, folder)
    parts = parts_of(trainer) | {"bank": bank_step(trainer)}
    found = race(parts, 2 if context.small else ROUNDS, trainer.recipe.batch, context.device)
    total = sum(found[name].median for name in PARTS)
    for name in PARTS:
        timing = found[name]
        context.report(f"share/{name}", 100 * timing.median / total, "%", ms=1000 * timing.median, spread=timing.spread)


def inductor_cache() -> dict[str, int]:
    """How often torch.compile has and has not found its code on disk; empty before anything is compiled."""
    if "torch._dynamo.utils" not in sys.modules:  # its import takes seconds
        return {}
    counters = sys.modules["torch._dynamo.utils"].counters
    names = ("fxgraph_cache_hit", "fxgraph_cache_miss")
    return {name: counters["inductor"][name] for name in names if counters["inductor"][name]}
