"""Section 1: training steps are right on this device: finite in every precision, equal to those of the CPU, without a
hidden wait for the GPU, and the same after a resume, in micro-batches and under the kNN probe.

Each check is a function that returns a `Finding`; the tests marked cuda call the same functions.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from adco.config.schema import (
    BankConfig,
    CheckpointConfig,
    ComputeConfig,
    DataConfig,
    EncoderConfig,
    MoCHiConfig,
    OptimizerConfig,
    PretrainConfig,
    SwAVConfig,
    ViewConfig,
)
from adco.data.batch import Batch
from adco.data.loader import ViewDataset, batches, requests
from adco.data.sources import open_images
from adco.methods import METHODS, build_method
from adco.train import checkpoint
from adco.train.knn_probe import KnnProbe
from adco.train.trainer import Trainer
from benchmarks.on_gpu.sections import Context
from benchmarks.on_gpu.sections.checks import Check, Finding, perform
from benchmarks.speed.photographs import write_photographs

CPU = torch.device("cpu")
PROJECT = str(Path(checkpoint.__file__).parent)
STEPS = 3
# A random network's gradient is large, and where rounding carries a value over a ReLU's corner it jumps by some 1e-3
# of its norm. So steps are compared at a learning rate at which such differences do not grow from step to step.
LR, LR_OF_TRAINING = 1e-5, 0.03
OF_LOSS, OF_WEIGHTS = 1e-3, 0.1  # tolerances; of weights as a share of how far they have moved
OF_FIRST_LOSS = {"float32": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}  # before any step, from float32's

Steps = tuple[list[float], list[Tensor], list[Tensor]]  # losses, weights before and after


def run(context: Context) -> None:
    """Report every check, the methods first. Raises Failure where one failed."""
    with tempfile.TemporaryDirectory(dir=context.work) as folder:
        perform(context, checks(context.device, write_images(Path(folder) / "images", context.small), context.small))


def checks(device: torch.device, root: Path, small: bool) -> Iterator[Check]:
    """(name, check) in order of value. small: a few methods and precisions."""
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


def write_images(root: Path, small: bool = False) -> Path:
    """`root/train` and `root/val`: drawn photographs of 96 x 72 pixels in two class folders, four batches to train."""
    for split, count in (("train", 32 if small else 128), ("val", 32)):
        write_photographs(root / split, count, classes=2, width=96, height=72)
    return root


def small_recipe(method: str, root: Path, small: bool = False) -> PretrainConfig:
    """A ResNet-18 at 64 px, batch 32, whose first steps are what later ones are: MoCHi mixes, SwAV's queue is used."""
    px, batch = (24, 8) if small else (64, 32)
    stem = "small" if small else "imagenet"
    return PretrainConfig(
        method=method,
        epochs=1,
        batch=batch,
        data=DataConfig(root=str(root), workers=2),
        views=[ViewConfig(px=px, scale=[0.3, 1.0])] * 2,
        encoder=EncoderConfig(arch="resnet18", stem=stem, dim=64, head_norm=True, predictor_width=32),
        bank=BankConfig(size=1024, init="random"),
        mix=MoCHiConfig(hard=64, pairs=32, with_query=16, from_epoch=0),
        swap=SwAVConfig(prototypes=48, queue=batch, queue_from_epoch=0, frozen_epochs=0.0),
        optimizer=OptimizerConfig(lr=LR, final_lr=0.0, schedule_by="step"),
        checkpoint=CheckpointConfig(every_steps=2, keep=10),
    )


def views_of(recipe: PretrainConfig, steps: int = STEPS) -> list[tuple[Tensor, ...]]:
    """The views of the first steps as the loader makes them, on the CPU: for each step V tensors (B, 3, S, S)."""
    index = open_images(recipe.data.root)
    wanted = requests(recipe.seed, len(index), recipe.batch, 0, steps)
    made = batches(ViewDataset(index, recipe.views, recipe.seed, 0), wanted, 0, CPU)
    return [tuple(batch.to_views(CPU)) for batch in made]


def with_compute(recipe: PretrainConfig, **changes) -> PretrainConfig:
    """The recipe with these values of `compute`."""
    return replace(recipe, compute=replace(recipe.compute, **changes))


@contextmanager
def trainer(recipe: PretrainConfig, device: torch.device) -> Iterator[Trainer]:
    """A Trainer in an output folder of its own, which is removed."""
    with tempfile.TemporaryDirectory() as folder:
        yield Trainer(recipe, Path(folder), device)


def train(run: Trainer, images: Iterable[Sequence[Tensor]]) -> list[float]:
    """One step of the trainer for each batch of views; returns the losses."""
    return [run.train_step(on_device(views, run.device)).loss.item() for views in images]


def on_device(views: Sequence[Tensor], device: torch.device) -> Batch:
    """Views as a batch that has arrived."""
    return Batch(tuple(view.to(device) for view in views), None, {})


def weights(run: Trainer) -> list[Tensor]:
    """All parameters of the trained encoder, and apart from them the bank where there is one, each as `flat` has it."""
    bank = [] if run.method.bank is None else [[run.method.bank.rows]]
    return [flat(tensors) for tensors in (run.method.encoder.parameters(), *bank)]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """(N,) float64 on the CPU, whatever the memory formats."""
    return torch.cat([tensor.detach().cpu().double().flatten() for tensor in tensors])


def relative(a: Sequence[Tensor], b: Sequence[Tensor], start: Sequence[Tensor]) -> float:
    """How far a is from b, as a share of how far b has come from the start: of several vectors the largest."""
    return max(((x - y).norm() / (y - z).norm()).item() for x, y, z in zip(a, b, start, strict=True))


def loss_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest difference, relative to b where that is above 1; infinite where one is no number."""
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    return ((a - b).abs() / b.abs().clamp(min=1)).nan_to_num(torch.inf, torch.inf).max().item()


def steps_of(recipe: PretrainConfig, device: torch.device) -> Steps:
    """The losses of a few steps, and the weights before and after them."""
    with trainer(recipe, device) as run:
        start = weights(run)
        return train(run, views_of(recipe)), start, weights(run)


def compared(a: PretrainConfig, b: PretrainConfig, device: torch.device, other: torch.device) -> Finding:
    """Whether a few steps of two recipes on their devices have the same losses and come to the same weights."""
    return judged(steps_of(a, device), steps_of(b, other))


def judged(found: Steps, right: Steps) -> Finding:
    """Whether two runs from the same weights agree to within the tolerances."""
    (losses, _, end), (expected, start, wanted) = found, right
    first, last = loss_difference(losses[:1], expected[:1]), loss_difference(losses, expected)
    moved = relative(end, wanted, start)
    facts = {"first_loss_difference": first, "loss_difference": last, "weights_difference": moved}
    facts |= {"losses": losses, "expected": expected, "tolerances": [OF_FIRST_LOSS["float32"], OF_LOSS, OF_WEIGHTS]}
    return Finding(first <= OF_FIRST_LOSS["float32"] and last <= OF_LOSS and moved <= OF_WEIGHTS, facts)


def equals_the_cpu(recipe: PretrainConfig, device: torch.device) -> Finding:
    """float32 on the device, channels last, against the CPU, contiguous."""
    return compared(recipe, with_compute(recipe, channels_last=False), device, CPU)


def micro_batches_equal_parts(recipe: PretrainConfig, device: torch.device) -> Finding:
    """Two micro-batches against one batch whose BatchNorm takes each half by itself."""
    parts = replace(recipe, encoder=replace(recipe.encoder, norm_splits=2))
    return compared(with_compute(recipe, accumulate=2), parts, device, device)


def finite(recipe: PretrainConfig, device: torch.device, precision: str) -> Finding:
    """The losses in a precision are numbers, and the first, before any step, is close to float32's. fp16 is scaled by
    the trainer's GradScaler; `scale` says how often it had to halve 65536."""
    if precision in ("tf32", "fp16") and device.type != "cuda":
        return Finding(None, {"reason": f"{precision} needs an NVIDIA GPU"})  # a CPU takes minutes for fp16
    recipe, images = replace(recipe, optimizer=replace(recipe.optimizer, lr=LR_OF_TRAINING)), views_of(recipe)
    with trainer(recipe, device) as run:
        expected = train(run, images[:1])
    with trainer(with_compute(recipe, precision=precision), device) as run:
        losses, end = train(run, images), weights(run)
    off, tolerance = loss_difference(losses[:1], expected), OF_FIRST_LOSS[precision]
    numbers = all(bool(found.isfinite().all()) for found in (torch.tensor(losses), *end))
    facts = {"losses": [str(loss) for loss in losses], "first_loss_difference": off, "tolerance": tolerance}
    facts |= {"scale": run.scaler.get_scale()} if precision == "fp16" else {}
    return Finding(numbers and off <= tolerance, facts)


def does_not_wait(recipe: PretrainConfig, device: torch.device, **compute) -> Finding:
    """After two steps, which make constants and choose algorithms, a step never waits for the GPU. Its views are there
    already; reading scalars, every ten steps, is no part of it."""
    if device.type != "cuda":
        return Finding(None, {"reason": "needs a GPU to wait for"})
    with trainer(with_compute(recipe, **compute), device) as run:
        *first, last = [on_device(views, device) for views in views_of(recipe)]
        for batch in first:
            run.train_step(batch)
        return without_waiting(partial(run.train_step, last))


def augmentation_does_not_wait(recipe: PretrainConfig, device: torch.device) -> Finding:
    """Colour and blur of a batch on the device, whose crops are there already, never wait for the GPU."""
    if device.type != "cuda":
        return Finding(None, {"reason": "needs a GPU to wait for"})
    index = open_images(recipe.data.root)
    dataset = ViewDataset(index, recipe.views, recipe.seed, 0, "device")
    first, second = batches(dataset, requests(recipe.seed, len(index), recipe.batch, 0, 2), 0, device)
    first.to_views(device)
    return without_waiting(partial(second.to_views, device))


def without_waiting(call: Callable[[], object]) -> Finding:
    """Whether a call comes to its end without a synchronising operation; `place`: the first one's line in the project.
    That one is noticed at all is tried first."""
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
    """cuDNN takes algorithms that give the same bits each time. To be entered once the trainer is built."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


def resumed(recipe: PretrainConfig, device: torch.device, **compute) -> Finding:
    """Four steps at once against two, a checkpoint and two more, these with other values of `compute`. bitwise: the
    whole state is the same bits, which is expected where `compute` is the same. The stem has no max pool, whose
    gradient is summed in any order on a GPU."""
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
            found = checkpoint.load(second.fit()).method
    off = relative(*map(encoder_and_rest, (found, end, start)))
    bitwise = all(torch.equal(found[name], end[name]) for name in end)
    return Finding(off <= OF_WEIGHTS, {"bitwise": bitwise, "weights_difference": off, "tolerance": OF_WEIGHTS})


def encoder_and_rest(state: Mapping[str, Tensor]) -> list[Tensor]:
    """A method's state in two vectors: the trained encoder's weights, which move little, and all else."""
    trained = [name for name in state if name.startswith("encoder.") and not re.search("running_|num_batches", name)]
    return [flat(state[name] for name in names) for names in (trained, sorted(state.keys() - set(trained)))]


def probe_is_not_compiled(recipe: PretrainConfig, device: torch.device, backend: str = "inductor") -> Finding:
    """The kNN probe gives the same before and after the backbone is compiled and used, and makes no graph."""
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
