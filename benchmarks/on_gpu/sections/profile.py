"""Section 8: the GPU's time in the eager and the compiled step: kernels by class, the longest ones, and idle time.

A kernel's class is the first of CLASSES whose pattern matches the names of the ops around its launch or its own name: a
compiled kernel that fuses BatchNorm with what follows counts as BatchNorm. On a CPU the ops' own times are used.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from adco.train.trainer import Trainer
from benchmarks.on_gpu.sections import Context
from benchmarks.on_gpu.sections.shared import attempt
from benchmarks.speed.race import race, repeated
from benchmarks.speed.step import our_trainer, random_batch, recipe_for

STEPS = 3
LONGEST, LETTERS = 15, 120  # kernels that are listed, and the letters of their names
COMPILED_SECONDS = 12.0  # when the section `step` has compiled the code before
BANK = "adco::bank"
CLASSES = {
    "bank": BANK,
    "optimiser and moving average": r"Optimizer\.step|_foreach_lerp|_fused_sgd",
    "copies": r"\naten::copy_\n[^\n]*\Z|\nMem(cpy|set)",
    "BatchNorm": r"batch_?norm|\bbn_(fw|bw)",
    "fused elementwise": r"\ntriton_(poi|red|per)",
    "convolution": r"conv(?!ert)|[fd]prop|[dw]grad",
    "matrix product": r"gemm|gemv|nvjet|splitK|aten::(mm|addmm|bmm|matmul|linear)\n",
    "elementwise": r"aten::|at::native",  # and reductions, pooling
}


@dataclass
class Op:
    """An op on the CPU.

    Attributes:
        number: Its correlation number in the trace.
        names: Those of the ops around it, outermost first, and its own.
        end: When it ended, in nanoseconds.
        ns: Its time in nanoseconds without that of the ops inside.
    """

    number: int
    names: tuple[str, ...]
    end: int
    ns: int


@dataclass(frozen=True)
class KernelTime:
    """The time of a kernel, or of an op on the CPU, in nanoseconds, and its class."""

    name: str
    kind: str
    ns: int


def run(context: Context) -> None:
    """The eager step, then the compiled one."""
    recipe = recipe_for(context.device, context.small)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("eager", "compiled"):
            changed = replace(recipe, compute=replace(recipe.compute, compile=name == "compiled"))
            if name == "compiled" and (context.small or context.left() < COMPILED_SECONDS):
                context.skip(name, "compiling takes longer than is left")
                continue
            with attempt(context, name):
                profiled(context, name, our_trainer(changed, context.device, Path(folder)))


def profiled(context: Context, name: str, trainer: Trainer) -> None:
    """Report the milliseconds of a step by class, the longest kernels, and the share of the step without a kernel."""
    annotate(trainer)
    batch = random_batch(trainer.recipe, trainer.device)
    steps = repeated(lambda: trainer.train_step(batch), STEPS)
    timing = race({name: steps}, 1 if context.small else 3, STEPS, context.device)[name]
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (context.device.type == "cuda")
    for _ in range(1 if context.small else 2):  # the first includes the start of the tracer
        with profile(activities=activities) as trace:
            steps()
            if context.device.type == "cuda":
                torch.cuda.synchronize(context.device)
    events = list(trace.profiler.kineto_results.events())
    kernels = [event for event in events if is_kernel(event)]
    step_ms = 1000 * timing.median / STEPS
    context.report(f"{name}/step", step_ms, "ms", spread=timing.spread)
    times = on_gpu(kernels, ops(events)) if context.device.type == "cuda" else on_cpu(ops(events))
    total = sum(time.ns for time in times)
    for kind, ns in summed(times, lambda time: time.kind).items():
        context.report(f"{name}/{kind}", ns / STEPS / 1e6, "ms", share=ns / total)
    longest = list(summed(times, lambda time: time.name[:LETTERS]).items())[:LONGEST]
    context.report(f"{name}/longest", [[kernel, round(ns / STEPS / 1e6, 4)] for kernel, ns in longest], "ms a step")
    if kernels:
        busy_ms = busy_ns([(event.start_ns(), event.end_ns()) for event in kernels]) / STEPS / 1e6
        # the tracer delays launches, but not the kernels themselves: so the step is timed without it
        context.report(f"{name}/gpu_idle_share", max(0.0, 1 - busy_ms / step_ms), busy_ms=busy_ms, kernels=len(kernels))


def annotate(trainer: Trainer) -> None:
    """Mark the loss and the bank in the trace: their kernels have the names of other matrix products."""

    def recorded(work: Callable) -> Callable:
        def call(*args: object) -> object:
            with record_function(BANK):
                return work(*args)

        return call

    for name in ("compute_loss", "update"):
        setattr(trainer.method, name, recorded(getattr(trainer.method, name)))


def is_kernel(event) -> bool:
    """Whether an event of the trace is a kernel, and not an annotation that is shown on the GPU, too."""
    return event.device_type() == DeviceType.CUDA and not event.is_user_annotation()


def ops(events: Iterable) -> list[Op]:
    """The ops of a trace with the ops around each, thread by thread, without calls of CUDA's runtime."""
    result, around, thread = [], [], None
    start = [event for event in events if event.device_type() == DeviceType.CPU and not _of_runtime(event)]
    for event in sorted(start, key=lambda e: (e.start_thread_id(), e.start_ns(), -e.end_ns())):
        if event.start_thread_id() != thread:
            around, thread = [], event.start_thread_id()
        while around and event.end_ns() > around[-1].end:
            around.pop()
        names = around[-1].names if around else ()
        if around:
            around[-1].ns -= event.duration_ns()
        op = Op(event.correlation_id(), (*names, event.name()), event.end_ns(), event.duration_ns())
        result.append(op)
        around.append(op)
    return result


def on_gpu(kernels: Iterable, launched_by: Sequence[Op]) -> list[KernelTime]:
    """The times of a trace's kernels, each classified by the ops that launched it and its own name."""
    names = {op.number: op.names for op in launched_by}
    return [
        KernelTime(
            kernel.name(), kind_of(names.get(kernel.linked_correlation_id(), ()), kernel.name()), kernel.duration_ns()
        )
        for kernel in kernels
    ]


def on_cpu(all_ops: Iterable[Op]) -> list[KernelTime]:
    """The ops' own times."""
    return [KernelTime(op.names[-1], kind_of(op.names), op.ns) for op in all_ops]


def kind_of(names: Sequence[str], kernel: str = "") -> str:
    """The class of a kernel that was launched inside ops of these names, outermost first."""
    text = "\n".join(("", *names, kernel))
    return next((kind for kind, pattern in CLASSES.items() if re.search(pattern, text, re.IGNORECASE)), "other")


def summed(times: Iterable[KernelTime], key: Callable[[KernelTime], str]) -> dict[str, int]:
    """The sum of nanoseconds for each key, largest first."""
    sums: dict[str, int] = defaultdict(int)
    for time in times:
        sums[key(time)] += time.ns
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def busy_ns(spans: Iterable[tuple[int, int]]) -> int:
    """Nanoseconds that at least one of the spans (start, end) covers; kernels of several streams may overlap."""
    total, until = 0, 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, until))
        until = max(until, end)
    return total


def _of_runtime(event) -> bool:
    return bool(re.match(r"cu(da)?[A-Z]", event.name()))  # their numbers are not those of ops
