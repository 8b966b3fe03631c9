"""Section 5: AdCo's loss and bank step: errors of its gradients, and its time against the released one and MoCo's.

256 queries of 128 dimensions, float32, one direction; benchmarks/speed/bank.py describes the contestants.
"""

from __future__ import annotations

from adco.utils.device import set_arithmetic
from benchmarks.on_gpu.sections import Context
from benchmarks.on_gpu.sections.shared import attempt
from benchmarks.speed.bank import CONTESTANTS, extra_memory, gradient_errors
from benchmarks.speed.race import race, ratio, repeated

STEPS_A_ROUND = {65536: 20, 8192: 50, 2**20: 2}
SMALL_STEPS_A_ROUND = {4096: 1, 512: 1, 16384: 1}


def run(context: Context) -> None:
    """Measure errors, then the time at several sizes of the bank, the paper's first, then memory."""
    set_arithmetic(context.device)
    sizes = SMALL_STEPS_A_ROUND if context.small else STEPS_A_ROUND
    with attempt(context, "gradient_error"):
        for name, error in gradient_errors(context.device, 512 if context.small else 8192).items():
            context.report(name, error, "of the largest entry")
    for size, steps in sizes.items():
        timed(context, size, steps)
    for name in () if context.small else ("ours", "moco", "released"):
        with attempt(context, f"extra_memory_65536/{name}"):
            context.report(f"extra_memory_65536/{name}", extra_memory(CONTESTANTS[name], context.device), "MiB")


def timed(context: Context, size: int, steps: int) -> None:
    """Report the milliseconds of a step of every contestant at one size of the bank, and ours against the others."""
    works = {}
    for name, make in CONTESTANTS.items():
        with attempt(context, f"{name}_{size}"):
            step = make(size, context.device)
            step()
            works[name] = repeated(step, steps)
    with attempt(context, f"race_{size}"):
        timings = race(works, 2 if context.small else 7, steps, context.device)
        for name, timing in timings.items():
            ms = 1000 * timing.median / steps
            context.report(f"{name}_{size}", ms, "ms", spread=timing.spread, steps_a_round=steps)
        for name in (name for name in timings if name != "ours" and "ours" in timings):
            speed = ratio("", timings[name], timings["ours"], 1).value
            context.report(f"ours_over_{name}_{size}", speed, "times as fast")
