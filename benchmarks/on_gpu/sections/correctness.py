"""Section 1: training steps are correct on this device.

They are finite in every precision, equal to those of the CPU, never wait for the GPU, and are the same after a resume,
in micro-batches and with the kNN probe. Each check is a function that returns a `Finding`; the tests marked cuda call
the same functions.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import adco
from adco.config.schema import ComputeConfig, PretrainConfig
from adco.data.loader import ViewDataset, batches, requests
from adco.data.sources import open_images
from adco.methods import METHODS, build_method
from adco.train import checkpoint
from adco.train.knn_probe import KnnProbe
from adco.train.trainer import Trainer
from benchmarks.on_gpu.sections import Context
from benchmarks.on_gpu.sections.checks import Check, Finding, perform
from benchmarks.on_gpu.sections.short_runs import (
    CPU,
    Steps,
    flat,
    loss_difference,
    on_device,
    relative,
    small_recipe,
    steps_of,
    train,
    trainer,
    views_of,
    weights,
    with_compute,
    write_images,
)

PROJECT = str(Path(adco.__file__).parent)
LR_OF_TRAINING = 0.03
OF_LOSS, OF_WEIGHTS = 1e-3, 0.1  # tolerances; of weights relative to how far they have moved
OF_FIRST_LOSS = {"float32": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}  # of the loss before any step


def run(context: Context) -> None:
    """Report every check, the methods first. Raises Failure when one failed."""
    with tempfile.TemporaryDirectory(dir=context.work) as folder:
        perform(context, checks(context.device, write_images(Path(folder) / "images", context.small), context.small))


def checks(device: torch.device, root: Path, small: bool) -> Iterator[Check]:
    """Names and checks, the most important first. small: a few methods and precisions."""
    recipes = {method: small_recipe(method, root, small) for method in METHODS}
    methods = ("adco", "swav") if small else tuple(METHODS)
    for method in methods:
        yield f"{method}_equals_cpu", partial(equals_the_cpu, recipes[method], device)
    for method in methods:
        yield f"{method}_does_not_wait", partial(does_not_wait, recipes[method], device)
    adco = recipes["adco"]
    yield "adco_fp16_does_not_wait", partial(does_not_wait, adco, device, precision="fp16")
    yield "augmentation_does_not_wait", partial(augmentation_does_not_wait, adco, device)
    yield "resumed", partial(resumed, adco, device)
    yield "resumed_in_another_memory_format", partial(resumed, adco, device, channels_last=False)
    for precision in ("tf32", "bf16", "fp16"):
        for method in methods:
            yield f"{method}_{precision}", partial(finite, recipes[method], device, precision)
    yield "micro_batches", partial(micro_batches_equal_parts, adco, device)
    yield "probe_and_compile", partial(probe_is_not_compiled, adco, device, "eager" if small else "inductor")


def compared(a: PretrainConfig, b: PretrainConfig, device: torch.device, other: torch.device) -> Finding:
    """Whether a few steps of two recipes on two devices have the same losses and the same weights at the end."""
    return agreement(steps_of(a, device), steps_of(b, other))


def agreement(actual: Steps, reference: Steps) -> Finding:
    """Whether two runs from the same weights agree to within the tolerances."""
    (losses, _, end), (expected, start, wanted) = actual, reference
    first, last = loss_difference(losses[:1], expected[:1]), loss_difference(losses, expected)
    moved = relative(end, wanted, start)
    facts = {"first_loss_difference": first, "loss_difference": last, "weights_difference": moved}
    facts |= {"losses": losses, "expected": expected, "tolerances": [OF_FIRST_LOSS["float32"], OF_LOSS, OF_WEIGHTS]}
    return Finding(first <= OF_FIRST_LOSS["float32"] and last <= OF_LOSS and moved <= OF_WEIGHTS, facts)


def equals_the_cpu(recipe: PretrainConfig, device: torch.device) -> Finding:
    """float32 on the device, channels last, against the CPU, contiguous."""
    return compared(recipe, with_compute(recipe, channels_last=False), device, CPU)


def micro_batches_equal_parts(recipe: PretrainConfig, device: torch.device) -> Finding:
    """Two micro-batches against one batch whose BatchNorm normalizes each half alone."""
    parts = replace(recipe, encoder=replace(recipe.encoder, norm_splits=2))
    return compared(with_compute(recipe, accumulate=2), parts, device, device)


def finite(recipe: PretrainConfig, device: torch.device, precision: str) -> Finding:
    """The losses in a precision are finite, and the first, before any step, is close to float32's. fp16 is scaled by
    the trainer's GradScaler; `scale` is what is left of 65536 after it was halved at each overflow."""
    if precision in ("tf32", "fp16") and device.type != "cuda":
        return Finding(None, {"reason": f"{precision} needs an NVIDIA GPU"})  # a CPU takes minutes for fp16
    recipe, images = replace(recipe, optimizer=replace(recipe.optimizer, lr=LR_OF_TRAINING)), views_of(recipe)
    with trainer(recipe, device) as run:
        expected = train(run, images[:1])
    with trainer(with_compute(recipe, precision=precision), device) as run:
        losses, end = train(run, images), weights(run)
    off, tolerance = loss_difference(losses[:1], expected), OF_FIRST_LOSS[precision]
    numbers = all(bool(values.isfinite().all()) for values in (torch.tensor(losses), *end))
    facts = {"losses": [str(loss) for loss in losses], "first_loss_difference": off, "tolerance": tolerance}
    facts |= {"scale": run.scaler.get_scale()} if precision == "fp16" else {}
    return Finding(numbers and off <= tolerance, facts)


def does_not_wait(recipe: PretrainConfig, device: torch.device, **compute) -> Finding:
    """After two steps, which make constants and choose algorithms, a step never waits for the GPU. Its views are on the
    device already; reading scalars, every ten steps, is not part of it."""
    if device.type != "cuda":
        return Finding(None, {"reason": "needs a GPU to wait for"})
    with trainer(with_compute(recipe, **compute), device) as run:
        *first, last = [on_device(views, device) for views in views_of(recipe)]
        for batch in first:
            run.train_step(batch)
        return without_waiting(partial(run.train_step, last))


def augmentation_does_not_wait(recipe: PretrainConfig, device: torch.device) -> Finding:
    """Colour and blur of a batch whose crops are on the device never wait for the GPU."""
    if device.type != "cuda":
        return Finding(None, {"reason": "needs a GPU to wait for"})
    index = open_images(recipe.data.root)
    dataset = ViewDataset(index, recipe.views, recipe.seed, 0, "device")
    first, second = batches(dataset, requests(recipe.seed, len(index), recipe.batch, 0, 2), 0, device)
    first.to_views(device)
    return without_waiting(partial(second.to_views, device))


def without_waiting(call: Callable[[], object]) -> Finding:
    """Whether a call runs without a synchronising operation; `place` is the first one's line in the project. First it
    is tested that torch reports such operations."""
    value, before = torch.ones((), device="cuda"), torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        try:
            value.item()
            return Finding(None, {"reason": "this torch does not notice synchronising operations"})
        except RuntimeError:
            call()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(PROJECT)]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}" if frames else "unknown"
        return Finding(False, {"place": place})
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return Finding(True)


@contextmanager
def deterministic() -> Iterator[None]:
    """cuDNN uses algorithms that give the same bits each time. To be entered after the trainer is built."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


def resumed(recipe: PretrainConfig, device: torch.device, **compute) -> Finding:
    """Four steps against two, a checkpoint and two more, which may have other options of `compute`. `bitwise`: the
    whole state is equal bit by bit, which is expected with the same `compute`. The stem has no max pool, because a
    GPU sums its gradient in any order."""
    recipe = replace(recipe, encoder=replace(recipe.encoder, stem="small"))
    with tempfile.TemporaryDirectory() as name:
        whole, part = Path(name) / "whole", Path(name) / "part"
        first = Trainer(recipe, whole, device)
        with deterministic():
            end = checkpoint.load(first.fit()).method
        part.mkdir()
        for suffix in ("", ".sha256"):
            shutil.copy(whole / f"checkpoint_{2:08d}.pth{suffix}", part)
        start = checkpoint.load(part / f"checkpoint_{2:08d}.pth").method
        second = Trainer(with_compute(recipe, **compute), part, device, resume=True)
        with deterministic():
            resumed_end = checkpoint.load(second.fit()).method
    off = relative(*map(encoder_and_rest, (resumed_end, end, start)))
    bitwise = all(torch.equal(resumed_end[name], end[name]) for name in end)
    return Finding(off <= OF_WEIGHTS, {"bitwise": bitwise, "weights_difference": off, "tolerance": OF_WEIGHTS})


def encoder_and_rest(state: Mapping[str, Tensor]) -> list[Tensor]:
    """A method's state as two vectors: the trained encoder's weights, which move little, and everything else."""
    trained = [name for name in state if name.startswith("encoder.") and not re.search("running_|num_batches", name)]
    return [flat(state[name] for name in names) for names in (trained, sorted(state.keys() - set(trained)))]


def probe_is_not_compiled(recipe: PretrainConfig, device: torch.device, backend: str = "inductor") -> Finding:
    """The kNN probe gives the same before and after the backbone is compiled, and compiles nothing itself."""
    from torch._dynamo.utils import counters

    torch.manual_seed(0)
    method = build_method(recipe).to_device(ComputeConfig(), device)
    probe, backbone = KnnProbe(recipe.data.root, recipe.views[0].px, 5, 0.07, 64, 0), method.encoder.backbone
    before = probe(backbone, device)
    backbone.compile(backend=backend, dynamic=False)
    with torch.no_grad():  # running statistics would move
        backbone.eval()(on_device(views_of(recipe, 1)[0], device).pixels[0])
    backbone.train()
    graphs = counters["stats"]["unique_graphs"]
    after, more = probe(backbone, device), counters["stats"]["unique_graphs"] - graphs
    return Finding(before == after and graphs > 0 and not more, {"before": before, "after": after, "more_graphs": more})
