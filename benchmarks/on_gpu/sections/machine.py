"""Section 0: the machine, and the speed of its memory, matrix units and cores, which bound the other sections."""

from __future__ import annotations

import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision

from adco.config.schema import ViewConfig
from adco.data import native
from adco.data.transforms import parameters
from adco.utils.device import set_arithmetic, usable_cores
from benchmarks.on_gpu.sections import Context
from benchmarks.speed.photographs import jpeg, photograph
from benchmarks.speed.race import timed

SMI_FIELDS = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.memory")
TWO_CROPS = (ViewConfig(), ViewConfig())


def run(context: Context) -> None:
    """Names and versions first, then copies, matrix products and the C kernel."""
    set_arithmetic(context.device)
    for name, value, unit in (*software(), *(card(context.device) if context.device.type == "cuda" else ())):
        context.report(name, value, unit)
    if context.device.type == "cuda":
        for name, value in zip(SMI_FIELDS, nvidia_smi(SMI_FIELDS), strict=True):
            context.report(name.replace(".", "_"), value)
    copies(context)
    products(context)
    kernel(context)


def software() -> list[tuple[str, object, str]]:
    """Names, values and units of the processor and the software."""
    try:
        processor = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        processor = None
    return [
        ("processor", processor[1] if processor else platform.machine(), ""),
        ("usable_cores", usable_cores(), ""),
        ("kernel_release", platform.release(), ""),
        ("python", platform.python_version(), ""),
        ("torch", torch.__version__, ""),
        ("torchvision", torchvision.__version__, ""),
        ("cuda", torch.version.cuda, ""),
    ]


def card(device: torch.device) -> list[tuple[str, object, str]]:
    """Names, values and units of what torch reports of the GPU and its libraries."""
    facts = torch.cuda.get_device_properties(device)
    return [
        ("card", facts.name, ""),
        ("cards", torch.cuda.device_count(), ""),
        ("memory", facts.total_memory / 2**30, "GiB"),
        ("memory_free", torch.cuda.mem_get_info(device)[0] / 2**30, "GiB"),
        ("compute_capability", f"{facts.major}.{facts.minor}", ""),
        ("multiprocessors", facts.multi_processor_count, ""),
        ("cudnn", torch.backends.cudnn.version(), ""),
        ("nccl", ".".join(map(str, torch.cuda.nccl.version())), ""),
    ]


def nvidia_smi(fields: Sequence[str]) -> list[str | None]:
    """What nvidia-smi reports of the first card, with units; None for each field where it reports nothing."""
    words = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        lines = []
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    return [*values] if len(values) == len(fields) else [None] * len(fields)


def seconds(work: Callable[[], object], device: torch.device, rounds: int, unmeasured: int = 3) -> list[float]:
    """Seconds of each round, after some unmeasured ones (`benchmarks.speed.race.timed`)."""
    for _ in range(unmeasured):
        work()
    return timed(work, rounds, device)


def report_rate(context: Context, name: str, work: Callable[[], object], amount: float, unit: str, rounds: int) -> None:
    """Report the amount of a round divided by the median seconds, and by those of the fastest and slowest round."""
    taken = seconds(work, context.device, rounds)
    rate, most, least = (amount / chosen(taken) for chosen in (statistics.median, min, max))
    context.report(name, rate, unit, rounds=rounds, most=most, least=least)


def copies(context: Context) -> None:
    """GB/s within the device's memory (bytes read plus bytes written), and from pinned memory to it and back."""
    mib = 16 if context.small else 2048
    source = torch.randn(mib << 18, device=context.device)
    target = torch.empty_like(source)
    moved = 2 * source.nbytes / 1e9
    report_rate(context, "copy_device_to_device", lambda: target.copy_(source), moved, "GB/s", 20)
    if context.device.type != "cuda":
        return
    part = target[: 512 << 18]
    host = torch.zeros(part.shape, pin_memory=True)
    amount = part.nbytes / 1e9
    report_rate(context, "copy_host_to_device", lambda: part.copy_(host, non_blocking=True), amount, "GB/s", 10)
    report_rate(context, "copy_device_to_host", lambda: host.copy_(part, non_blocking=True), amount, "GB/s", 10)


def products(context: Context) -> None:
    """TFLOP/s of a product of square random matrices, in the formats that training uses."""
    side = 256 if context.small else 8192
    flop = 2 * side**3 / 1e12
    for name, dtype, tf32 in (
        ("matmul_bf16", torch.bfloat16, False),
        ("matmul_fp16", torch.float16, False),
        ("matmul_tf32", torch.float32, True),
        ("matmul_float32", torch.float32, False),
    ):
        a, b = (torch.randn(side, side, device=context.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        report_rate(context, name, lambda a=a, b=b, out=out: torch.mm(a, b, out=out), flop, "TFLOP/s", 20)
    set_arithmetic(context.device)


def kernel(context: Context) -> None:
    """Images/s of the C kernel by threads: from JPEGs of 500 x 375 in memory to two normalized 224 px crops with every
    augmentation. Sampling the random parameters is not included."""
    if not native.fast_jpeg():
        context.skip("kernel_threads", "the C kernel, or a libjpeg-turbo for it, is not there")
        return
    files = [jpeg(photograph(seed, 500, 375)) for seed in range(4 if context.small else 16)]
    batch = 16 if context.small else 128
    out = [np.empty((batch, view.px, view.px, 3), np.float32) for view in TWO_CROPS]
    draws = [parameters.sample_params(view, 0, 0, np.arange(batch), number) for number, view in enumerate(TWO_CROPS)]
    canvas = native.Canvas([view.scale for view in TWO_CROPS], draws, out, full=True)

    def render(first: int, step: int) -> bool:
        return all([canvas.jpeg(row, files[row % len(files)]) for row in range(first, batch, step)])

    def render_batch(pool: ThreadPoolExecutor, threads: int) -> bool:
        return all(list(pool.map(render, range(threads), [threads] * threads)))

    cpu = torch.device("cpu")  # these rounds are timed by the clock
    for threads in sorted({min(count, usable_cores()) for count in (1, 8, 16)}):
        with ThreadPoolExecutor(threads) as pool:
            work = partial(render_batch, pool, threads)
            if not work():
                context.skip("kernel_threads", "the C kernel refused a JPEG")
                return
            taken = seconds(work, cpu, 3 if context.small else 10, unmeasured=1)
        rate = batch / statistics.median(taken)
        context.report(f"kernel_threads_{threads}", rate, "images/s", jpeg_kb=sum(map(len, files)) / len(files) / 1e3)
