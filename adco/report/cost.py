"""What pretraining costs: arithmetic counted by fvcore, parameters, and what was measured of time and memory."""

from __future__ import annotations

import functools
import importlib.util
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from adco.config.schema import EncoderConfig, PretrainConfig
from adco.methods import build_method
from adco.methods.base import Method
from adco.models.encoder import mlp_head
from adco.models.resnet import build_resnet

MOVING = "method", "views", "encoder", "contrast", "bank", "mix", "swap"  # parts of a recipe that move the counts
_COUNTED: dict[str, tuple[Parameters, Work | None]] = {}


@dataclass(frozen=True)
class Parameters:
    """How many numbers are trained, in ones; tail: predictor or prototypes; bank: rows x dim (a queue's are not)."""

    backbone: int
    head: int
    tail: int
    bank: int


@dataclass(frozen=True)
class Work:
    """Multiply-adds for one image in one step.

    query: views that are trained, forward and backward (counted as 3 forward passes); key: views of the key encoder,
    forward; bank: every product of embeddings with bank rows, forward, gradient and the rows' own direction
    """

    query: float
    key: float
    bank: float

    @property
    def step(self) -> float:
        return self.query + self.key + self.bank


def counted(recipe: PretrainConfig) -> tuple[Parameters, Work | None]:
    """Parameters of the method's own modules, and the work of a step for one image (None: fvcore is not installed).

    What cannot move them (seed, data, schedules) is not looked at, so runs of one recipe are counted once.
    """
    key = json.dumps([asdict(recipe)[name] for name in MOVING])
    if key not in _COUNTED:
        _COUNTED[key] = _count_all(recipe)
    return _COUNTED[key]


def _count_all(recipe: PretrainConfig) -> tuple[Parameters, Work | None]:
    with torch.device("meta"):  # no memory for the weights
        method = build_method(recipe)
    bank = recipe.bank.size * recipe.encoder.dim if method.bank is not None else 0
    modules = method.encoder.backbone, method.encoder.head, method.encoder.tail
    parts = (sum(p.numel() for p in module.parameters()) if module else 0 for module in modules)
    there = importlib.util.find_spec("fvcore") is not None
    return Parameters(*parts, bank), _work(recipe, method) if there else None


def _work(recipe: PretrainConfig, method: Method) -> Work:
    tail = _count(method.encoder.tail, torch.zeros(1, recipe.encoder.dim)) if method.encoder.tail else 0
    forward = [encoder_work(recipe.encoder, view.px) for view in recipe.views]
    query = sum(3 * (forward[view] + tail) for view in method.query_views)
    key = sum(forward[view] for view in method.key_views) if method.key_encoder is not None else 0
    return Work(query, key, _bank_work(recipe, len(method.query_views), len(method.key_views)))


def encoder_work(options: EncoderConfig, px: int) -> float:
    """Multiply-adds of ResNet and head on one image of `px` x `px`, forward."""
    width = 512 if options.arch in ("resnet18", "resnet34") else 2048
    with torch.device("meta"):
        head = mlp_head(width, options)
    return _backbone_work(options.arch, options.stem, px) + _count(head, torch.zeros(1, width))


@functools.cache
def _backbone_work(arch: str, stem: str, px: int) -> float:
    with torch.device("meta"):
        backbone = build_resnet(arch, stem)
    return _count(backbone, torch.zeros(1, 3, px, px))


def _count(module: nn.Module, example: torch.Tensor) -> float:
    """fvcore's count of a module on one example; weights do not matter to it, so they are left empty."""
    from fvcore.nn import FlopCountAnalysis

    module = module.to_empty(device="cpu").eval()
    counted = FlopCountAnalysis(module, example).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        return float(counted.total())


def _bank_work(recipe: PretrainConfig, queries: int, keys: int) -> float:
    """Products of embeddings with all rows: logits and their gradient for each query view; what learns, its direction
    too; CaCo seeks each key's nearest row; MoCHi ranks the queue first and adds its mixtures (`from_epoch` on)."""
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
    """What a run's metrics say, after its first tenth: medians over the rows. gpu_memory_gib: the peak of a rank."""

    images_per_second: float
    rows: int
    waiting: float | None
    gpu_memory_gib: float | None


def speed_of(rows: Sequence[Mapping[str, float]]) -> Speed | None:
    """None where the rows tell no speed."""
    reported = [row for row in rows if "images_per_second" in row]
    reported = reported[len(reported) // 10 :]
    if not reported:
        return None
    waits = [row["loader_wait_share"] for row in reported if "loader_wait_share" in row]
    memory = [row["gpu_memory_gib"] for row in reported if "gpu_memory_gib" in row]
    rate = statistics.median(row["images_per_second"] for row in reported)
    return Speed(rate, len(reported), statistics.median(waits) if waits else None, max(memory) if memory else None)
