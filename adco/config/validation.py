"""The allowed values of a recipe: an error names the first key whose value is not allowed, and what is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from adco.config.schema import PretrainConfig, ViewConfig
from adco.utils.errors import UserError

METHOD_NAMES = {  # name in recipes -> name in the papers
    "adco": "AdCo",
    "moco": "MoCo v2",
    "caco": "CaCo",
    "mochi": "MoCHi",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "swav": "SwAV",
}
BANKED = ("adco", "caco", "moco", "mochi")  # the methods that contrast with a bank or a queue
CHOICES = {
    "method": tuple(METHOD_NAMES),
    "data.backend": ("auto", "native", "device", "nvjpeg", "reference"),
    "encoder.arch": ("resnet18", "resnet34", "resnet50", "resnet101"),
    "encoder.stem": ("imagenet", "small"),
    "encoder.batch_norm": ("local", "sync"),
    "encoder.key_batch_norm": ("shuffle", "local", "sync"),
    "bank.objective": ("loss", "J"),
    "bank.init": ("encode", "train_and_fill", "random"),
    "bank.lr_schedule": ("constant", "cosine"),
    "bank.placement": ("auto", "sharded", "replicated"),
    "optimizer.kind": ("sgd", "lars"),
    "optimizer.schedule_by": ("epoch", "step"),
    "compute.precision": ("float32", "tf32", "bf16", "fp16"),
}
AT_LEAST = {
    0: (
        "encoder.head_width", "encoder.predictor_width", "bank.lr", "bank.weight_decay", "mix.pairs", "mix.with_query",
        "mix.from_epoch", "swap.frozen_epochs", "swap.queue", "swap.queue_from_epoch", "optimizer.lr",
        "optimizer.final_lr", "optimizer.weight_decay", "monitor.every_steps", "probe.every_epochs",
        "checkpoint.every_steps",
    ),
    1: (
        "epochs", "encoder.dim", "encoder.head_layers", "encoder.norm_splits", "bank.size", "mix.hard", "swap.rounds",
        "compute.accumulate", "probe.k", "probe.max_images", "checkpoint.keep", "checkpoint.every_epochs",
    ),
    2: ("batch", "swap.prototypes"),
}  # fmt: skip
ABOVE_ZERO = ("contrast.tau", "contrast.tau_bank", "swap.epsilon", "optimizer.trust", "probe.temperature")
SHARES = ("encoder.key_momentum", "bank.sgd_momentum", "optimizer.sgd_momentum")  # in [0, 1]


def check_recipe(recipe: PretrainConfig) -> None:
    """Raise UserError for the first value that is out of range, or that does not fit to another value."""

    def value(key: str) -> Any:
        node = recipe
        for part in key.split("."):
            node = getattr(node, part)
        return node

    for key, number in _numbers(asdict(recipe)):
        _need(key, number, math.isfinite(number), "a finite number")
    for key, options in CHOICES.items():
        if value(key) not in options:
            raise UserError(f"{key}={value(key)!r} is not known; choose one of {', '.join(options)}")
    for low, keys in AT_LEAST.items():
        for key in keys:
            _need(key, value(key), value(key) >= low, f"at least {low}")
    for key in ABOVE_ZERO:
        _need(key, value(key), value(key) > 0, "above 0")
    for key in SHARES:
        _need(key, value(key), 0 <= value(key) <= 1, "in [0, 1]")
    is_device = re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", recipe.device) is not None
    _need("device", recipe.device, is_device, "auto, cpu, cuda or cuda:INDEX")
    workers = recipe.data.workers
    fine = workers == "auto" or (isinstance(workers, int) and workers >= 0)
    _need("data.workers", workers, fine, "auto or a number of threads, at least 0")
    _need("seed", recipe.seed, 0 <= recipe.seed < 2**32, "a whole number from 0 to 2^32 - 1")
    _need("data.max_bad_share", recipe.data.max_bad_share, 0 <= recipe.data.max_bad_share < 1, "in [0, 1)")
    for key in ("optimizer.warmup_epochs", "bank.warmup_epochs"):
        _need(key, value(key), 0 <= value(key) <= recipe.epochs, f"from 0 to epochs={recipe.epochs}")
    _check_batch(recipe)
    _check_method(recipe)
    for i, view in enumerate(recipe.views):
        _check_view(f"views.{i}", view)


def _check_batch(recipe: PretrainConfig) -> None:
    encoder, accumulate = recipe.encoder, recipe.compute.accumulate
    parts = accumulate * encoder.norm_splits
    shared = recipe.batch % parts == 0 and recipe.batch // parts >= 2
    wanted = f"compute.accumulate x encoder.norm_splits = {parts} equal parts of at least 2 images, for BatchNorm"
    _need("batch", recipe.batch, shared, wanted)
    synced = "sync" in (encoder.batch_norm, encoder.key_batch_norm)
    _need("encoder.norm_splits", encoder.norm_splits, encoder.norm_splits == 1 or not synced, "1 with sync statistics")
    whole = accumulate == 1 or not synced
    _need("compute.accumulate", accumulate, whole, "1 with sync statistics, which are those of the whole batch")
    for key in ("compile", "cuda_graphs"):
        asked = getattr(recipe.compute, key)
        _need(f"compute.{key}", asked, not (asked and synced), "false with sync statistics, which the ranks exchange")


def _check_method(recipe: PretrainConfig) -> None:
    method, count, encoder = recipe.method, len(recipe.views), recipe.encoder
    _need("views", count, count >= 2, "at least 2")
    if method in ("simclr", "byol", "simsiam", "moco", "mochi"):
        _need("views", count, count == 2, f"2, {method} compares two views")
    if method in ("byol", "simsiam"):
        _need("encoder.predictor_width", encoder.predictor_width, encoder.predictor_width > 0, f"above 0 for {method}")
    if method in ("caco", "moco", "mochi"):
        fine = recipe.bank.init != "train_and_fill"
        _need("bank.init", recipe.bank.init, fine, "encode or random; only adco can train while it fills")
    if method == "mochi":
        hard, bank = recipe.mix.hard, recipe.bank
        _need("mix.hard", hard, hard <= bank.size, f"at most bank.size={bank.size}")
        reason = "replicated: the hardest rows are those of the whole bank"
        _need("bank.placement", bank.placement, bank.placement != "sharded", reason)


def _check_view(name: str, view: ViewConfig) -> None:
    _need(f"{name}.px", view.px, view.px >= 8, "at least 8")
    ordered = len(view.scale) == 2 and 0 < view.scale[0] <= view.scale[1] <= 1
    _need(f"{name}.scale", view.scale, ordered, "two shares of the area, 0 < low <= high <= 1")
    sigma = view.blur_sigma_px
    _need(f"{name}.blur_sigma_px", sigma, len(sigma) == 2 and 0 < sigma[0] <= sigma[1], "two widths, 0 < low <= high")
    strengths = len(view.jitter) == 4 and min(view.jitter) >= 0 and max(view.jitter[:3]) <= 1 and view.jitter[3] <= 0.5
    _need(f"{name}.jitter", view.jitter, strengths, "four strengths in [0, 1], the hue's in [0, 0.5]")
    for key in ("jitter_p", "gray_p", "blur_p", "solarize_p", "flip_p"):
        _need(f"{name}.{key}", getattr(view, key), 0 <= getattr(view, key) <= 1, "in [0, 1]")


def _numbers(tree: dict | list, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(dotted key, value) of every floating-point number of a recipe."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, (dict, list)):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield f"{prefix}{key}", value


def _need(key: str, value: object, fine: bool, expected: str) -> None:
    if not fine:
        raise UserError(f"{key}={value} is out of range; expected {expected}")
