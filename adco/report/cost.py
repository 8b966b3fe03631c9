"""The cost of pretraining: arithmetic counted by fvcore, parameters, and the time and memory of our own runs."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adco.config.loading import as_recipe, load_recipe
from adco.config.schema import EncoderConfig, PretrainConfig
from adco.methods import build_method
from adco.methods.base import Method
from adco.models.encoder import mlp_head
from adco.models.resnet import build_resnet
from adco.report.accuracy_curves import METHOD_STYLES
from adco.report.collect import Run, Study
from adco.report.elements import MISSING, NOT_RUN, UNKNOWN, Cell, Section, Table, columns, measured, number, published
from adco.report.result_tables import link
from adco.utils.errors import UserError
from adco.utils.serialization import plain

RECIPES = {  # row of the table -> recipe
    "MoCo v2": "moco_r50_200ep",
    "SimCLR": "simclr_r50_200ep",
    "BYOL": "byol_r50_200ep",
    "SimSiam": "simsiam_r50_200ep",
    "SwAV, multi-crop": "swav_r50_multicrop_200ep",
    "AdCo": "adco_r50_200ep",
    "AdCo, K = 8192": "adco_r50_200ep_k8192",
    "AdCo symmetric": "adco_r50_sym_200ep",
    "AdCo symmetric, K = 8192": "adco_r50_sym_200ep_k8192",
    "AdCo, multi-crop": "adco_r50_multicrop_200ep",
    "CaCo": "caco_r50_200ep_b1024",
    "MoCHi": "mochi_r50_200ep",
}
BASE = RECIPES["MoCo v2"]
IMAGENET = 1_281_167  # training images
COUNTED = "method", "views", "encoder", "contrast", "bank", "mix", "swap"  # sections of a recipe that change the counts
NOT_KEPT = Cell("–", note="not in the run's metrics, or these were not kept")
NOT_COUNTED = Cell("–", note="fvcore is not installed")

_CACHE: dict[str, tuple[Parameters, StepCost | None]] = {}


@dataclass(frozen=True)
class Parameters:
    """Numbers of trained parameters. tail: predictor or prototypes; bank: rows x dim, of a queue not trained."""

    backbone: int
    head: int
    tail: int
    bank: int


@dataclass(frozen=True)
class StepCost:
    """Multiply-adds of a training step for one image.

    Attributes:
        query: Forward and backward pass of the trained encoder for all query views, counted as 3 forward passes.
        key: Forward pass of the key encoder for all key views.
        bank: Products of embeddings with the bank: logits, their gradient, and the gradient of the rows.
    """

    query: float
    key: float
    bank: float

    @property
    def step(self) -> float:
        """The sum."""
        return self.query + self.key + self.bank


def counted(recipe: PretrainConfig) -> tuple[Parameters, StepCost | None]:
    """Parameters of a recipe's modules, and the cost of its step (None if fvcore is not installed).

    The result is cached for the sections of the recipe that can change it; seed, data and schedules cannot.
    """
    key = json.dumps([asdict(recipe)[name] for name in COUNTED])
    if key not in _CACHE:
        with torch.device("meta"):  # no memory for the weights
            method = build_method(recipe)
        fvcore = importlib.util.find_spec("fvcore") is not None
        _CACHE[key] = _parameters(recipe, method), _step_cost(recipe, method) if fvcore else None
    return _CACHE[key]


def _parameters(recipe: PretrainConfig, method: Method) -> Parameters:
    def size(module: nn.Module | None) -> int:
        return sum(p.numel() for p in module.parameters()) if module is not None else 0

    encoder, bank = method.encoder, recipe.bank.size * recipe.encoder.dim if method.bank is not None else 0
    return Parameters(size(encoder.backbone), size(encoder.head), size(encoder.tail), bank)


def _step_cost(recipe: PretrainConfig, method: Method) -> StepCost:
    module = method.encoder.tail
    tail = _multiply_adds(module, torch.zeros(1, recipe.encoder.dim)) if module is not None else 0
    forward = [_encoder_cost(recipe.encoder, view.px) for view in recipe.views]
    query = sum(3 * (forward[view] + tail) for view in method.query_views)
    key = sum(forward[view] for view in method.key_views) if method.key_encoder is not None else 0
    return StepCost(query, key, _bank_cost(recipe, len(method.query_views), len(method.key_views)))


def _encoder_cost(options: EncoderConfig, px: int) -> float:
    """Multiply-adds of ResNet and head on one image of `px` x `px`, forward."""
    width = 512 if options.arch in ("resnet18", "resnet34") else 2048
    with torch.device("meta"):
        head = mlp_head(width, options)
    return _backbone_cost(options.arch, options.stem, px) + _multiply_adds(head, torch.zeros(1, width))


@functools.cache
def _backbone_cost(arch: str, stem: str, px: int) -> float:
    with torch.device("meta"):
        backbone = build_resnet(arch, stem)
    return _multiply_adds(backbone, torch.zeros(1, 3, px, px))


def _multiply_adds(module: nn.Module, example: Tensor) -> float:
    """fvcore's count of a module on one example. Weights do not change it, so they stay uninitialised."""
    from fvcore.nn import FlopCountAnalysis

    module = module.to_empty(device="cpu").eval()
    analysis = FlopCountAnalysis(module, example).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        return float(analysis.total())


def _bank_cost(recipe: PretrainConfig, queries: int, keys: int) -> float:
    """Products of embeddings with all rows. All methods: logits and their gradient for each query view. AdCo and CaCo:
    the gradient of the rows, too. CaCo: the nearest row of each key. MoCHi: a ranking of the queue, and its mixtures
    (from `from_epoch` on)."""
    rows = recipe.bank.size * recipe.encoder.dim
    mixtures = 2 * (recipe.mix.pairs + recipe.mix.with_query) * recipe.encoder.dim
    return {
        "adco": 3 * queries * rows,
        "caco": (3 * queries + keys) * rows,
        "moco": 2 * queries * rows,
        "mochi": queries * (3 * rows + mixtures),
    }.get(recipe.method, 0)


@dataclass(frozen=True)
class Speed:
    """Speed of a run after its first tenth.

    Attributes:
        images_per_second: Median over the rows of its metrics.
        rows: Number of rows.
        waiting: Median share of the time that it waited for images, in [0, 1].
        gpu_memory_gib: Peak memory of a rank.
    """

    images_per_second: float
    rows: int
    waiting: float | None
    gpu_memory_gib: float | None


def speed_of(rows: Sequence[Mapping[str, float]]) -> Speed | None:
    """The speed in the rows of a `metrics.jsonl`; None if they have none."""
    timed = [row for row in rows if "images_per_second" in row]
    timed = timed[len(timed) // 10 :]
    if not timed:
        return None
    waits = [row["loader_wait_share"] for row in timed if "loader_wait_share" in row]
    memory = [row["gpu_memory_gib"] for row in timed if "gpu_memory_gib" in row]
    rate = statistics.median(row["images_per_second"] for row in timed)
    return Speed(rate, len(timed), statistics.median(waits) if waits else None, max(memory, default=None))


def section(study: Study, out: Path, hours: Mapping[str, float]) -> Section:
    """The chapter of cost. hours: recipe -> GPU hours of an epoch in the paper."""
    lead = (
        "The cost of a step is counted for one image: forward and backward through the trained encoder for every query "
        "view (a backward pass counts as two forward ones), forward through the key encoder, and the products with the "
        "bank. fvcore counts ResNet, head, predictor and prototypes; a multiply-add counts as one. GPU hours come from "
        "records that were made on GPUs."
    )
    blocks = [recipe_table(hours, study.runs, out), *([run_table(study.runs, out)] if study.runs else [])]
    return Section("cost", "Cost", [lead], blocks)


def recipe_table(hours: Mapping[str, float], runs: Sequence[Run], out: Path) -> Table:
    """The published recipes: the paper's GPU hours, ours from a run of the same recipe on ImageNet, and the counts."""
    heads = columns("recipe", numeric=False) + columns("paper", "ours", group="GPU hours an epoch")
    heads += columns("G multiply-adds", "to MoCo v2", "bank's share", group="step, one image")
    heads += columns("backbone", "head", "tail", "bank", group="parameters, millions")
    rows = []
    for name, file in RECIPES.items():
        parameters, ours = (
            _of_recipe(file)[0],
            next((hours_cell(run, out) for run in runs if _is_of(run, file)), MISSING),
        )
        sizes = (parameters.backbone, parameters.head, parameters.tail, parameters.bank)
        millions = (number(size / 1e6) if size else Cell("–", value=0.0) for size in sizes)
        rows.append((Cell(name, note=file), published(hours.get(file), ".2f"), ours, *_step_cells(file), *millions))
    note = (
        "tail: predictor of BYOL and SimSiam, prototypes of SwAV. bank: rows that are trained; for MoCo v2 and MoCHi a "
        "queue, which is not. The paper's hardware: table 2."
    )
    title, caption = "Arithmetic and parameters of the published recipes", "ResNet-50, 224 px; counted, not timed."
    return Table("cost-recipes", title, heads, rows, caption, [note])


@functools.cache
def _of_recipe(file: str) -> tuple[Parameters, StepCost | None]:
    return counted(load_recipe(file))


def _step_cells(file: str) -> tuple[Cell, ...]:
    cost, base = _of_recipe(file)[1], _of_recipe(BASE)[1]
    if cost is None or base is None:
        return (NOT_COUNTED,) * 3
    share = 100 * cost.bank / cost.step
    bank = number(share, ".2f", " %") if cost.bank else Cell("–", value=share)
    return number(cost.step / 1e9), number(cost.step / base.step), bank


def _is_of(run: Run, file: str) -> bool:
    """Whether a finished run is of a published recipe, in all that changes its cost, on the whole of ImageNet."""
    if run.record is None or run.record.data.counts.get("images") != IMAGENET:
        return False
    published_recipe = asdict(load_recipe(file))
    return all(plain(run.recipe.get(name)) == plain(published_recipe[name]) for name in (*COUNTED, "batch"))


def hours_cell(run: Run, out: Path) -> Cell:
    """GPU hours of an epoch: duration of the run times the number of GPUs, over its epochs. On a CPU: not run."""
    if run.record is None:
        return Cell("–", note="it has no record, because it is not finished")
    gpus = re.match(r"(\d+) x ", run.record.hardware)
    if not gpus or run.recipe.get("device") == "cpu":
        return Cell("not run on a GPU", NOT_RUN)
    hours = run.record.duration_seconds / 3600 * int(gpus[1]) / run.record.settings["epochs"]
    return measured(hours, ".2f" if hours >= 0.1 else ".4f", href=link(run.path, out), note=run.record.hardware)


def run_table(runs: Sequence[Run], out: Path) -> Table:
    """Our own pretraining runs: speed with the hardware, and memory where a GPU reported it."""
    heads = columns("run", "method", "network and view", numeric=False)
    heads += columns("batch", "epochs", "GPU hours an epoch", "images/s", "waiting for images", "GPU memory, GiB")
    heads += columns("G multiply-adds, step, one image") + columns("hardware", numeric=False)
    rows = [_run_cells(run, out) for run in runs]
    used = [i for i, _ in enumerate(heads) if any(row[i].text != "–" for row in rows)]
    heads, rows = [heads[i] for i in used], [[row[i] for i in used] for row in rows]
    caption = (
        "GPU hours: of the whole run, with its probes. images/s: median over the run's metrics after its first tenth, "
        "if they were kept; other work on the machine is not subtracted."
    )
    return Table("cost-runs", "Our pretraining runs", heads, rows, caption)


def _run_cells(run: Run, out: Path) -> tuple[Cell, ...]:
    speed = speed_of(run.rows)
    try:
        method, network, batch, step = _recipe_cells(as_recipe(run.path, dict(run.recipe)))
    except UserError as error:
        method, network, batch, step = (
            Cell("–", note=f"its recipe cannot be read: {error}"),
            UNKNOWN,
            UNKNOWN,
            NOT_COUNTED,
        )
    epochs = max([row["epoch"] for row in run.rows] or [run.record.settings["epochs"] if run.record else 0])
    rate = measured(speed.images_per_second, ".1f", note=f"median of {speed.rows} rows") if speed else NOT_KEPT
    waiting = UNKNOWN if speed is None or speed.waiting is None else Cell(f"{100 * speed.waiting:.1f} %")
    memory = NOT_KEPT if speed is None or speed.gpu_memory_gib is None else measured(speed.gpu_memory_gib)
    name, hardware = Cell(run.name, href=link(run.path, out)), Cell(run.record.hardware if run.record else "–")
    done = Cell(f"{epochs:g}")
    return name, method, network, batch, done, hours_cell(run, out), rate, waiting, memory, step, hardware


def _recipe_cells(recipe: PretrainConfig) -> tuple[Cell, Cell, Cell, Cell]:
    """Method, network and views, batch, and the cost of a step."""
    cost, sizes = counted(recipe)[1], sorted({view.px for view in recipe.views}, reverse=True)
    views = f" x {sizes[0]} px" if len(sizes) == 1 else f" views, {sizes[0]}–{sizes[-1]} px"
    method = METHOD_STYLES[recipe.method][0] + (" symmetric" if recipe.contrast.symmetric else "")
    step = NOT_COUNTED if cost is None else number(cost.step / 1e9)
    return Cell(method), Cell(f"{recipe.encoder.arch}, {len(recipe.views)}{views}"), number(recipe.batch, ""), step
