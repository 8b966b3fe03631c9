"""Fit a recipe to fewer GPUs: the linear rule, or the recipe's own batch by gradient accumulation. Nothing silently.

A recipe is written for SOLVER.REFERENCE_WORLD_SIZE GPUs. detectron2's own trainer applies the same rule to that key, so
that its stock scripts train what ours do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from detectron2.config import CfgNode

from adco.utils.errors import UserError

SCHEDULE = ("MAX_ITER", "STEPS", "WARMUP_ITERS", "CHECKPOINT_PERIOD")  # scaled inversely to the batch
PLANNED = ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")


@dataclass(frozen=True)
class BatchPlan:
    """How a recipe is run on `workers` processes.

    rule: `reference` (nothing changed), `linear` (batch and schedule scaled) or `as given` (overrides taken literally)
    batch: images of one optimiser step, over all processes and passes
    passes: forward and backward passes of each process in one step; more than one accumulates gradients
    differences: a line for each setting that differs from the recipe
    """

    rule: str
    workers: int
    batch: int
    passes: int
    differences: tuple[str, ...]

    @property
    def images_per_pass(self) -> int:
        return self.batch // (self.workers * self.passes)


def plan(
    cfg: CfgNode,
    recipe: CfgNode,
    workers: int,
    batch: int | None = None,
    images_per_gpu: int | None = None,
    as_given: bool = False,
) -> BatchPlan:
    """Set cfg.SOLVER for `workers` processes and return what was done.

    cfg: config file and overrides; recipe: the config file alone
    batch: images per optimiser step (default: the recipe's images per GPU times `workers`)
    images_per_gpu: what one GPU holds at once; a larger share of the batch is accumulated (default: the recipe's)
    as_given: scale nothing, train what cfg says, in one pass unless images_per_gpu is given
    Raises UserError for overrides that would silently make another training, and for a batch that cannot be shared out.
    """
    reference_gpus = recipe.SOLVER.REFERENCE_WORLD_SIZE or workers
    reference_per_gpu = max(recipe.SOLVER.IMS_PER_BATCH // reference_gpus, 1)
    overridden = [key for key in PLANNED if cfg.SOLVER[key] != recipe.SOLVER[key]]
    if as_given:
        batch = cfg.SOLVER.IMS_PER_BATCH if batch is None else batch
        check_share(batch, workers)
        cfg.SOLVER.IMS_PER_BATCH, reference_per_gpu, rule = batch, batch // workers, "as given"
    else:
        batch = reference_per_gpu * workers if batch is None else batch
        check_share(batch, workers)
        scale = batch / recipe.SOLVER.IMS_PER_BATCH
        refuse_overrides(overridden, scale)
        rule = "reference" if scale == 1 else "linear"
        set_solver(cfg, scaled(cfg, scale))
    cfg.SOLVER.REFERENCE_WORLD_SIZE = workers  # so that detectron2's own trainer does not scale once more
    passes = passes_for(batch, workers, reference_per_gpu if images_per_gpu is None else images_per_gpu)
    return BatchPlan(rule, workers, batch, passes, tuple(differences(cfg, recipe)))


def scaled(cfg: CfgNode, scale: float) -> dict[str, object]:
    """The linear rule (Goyal et al. 2017): batch and rate times `scale`, the schedule divided by it."""

    def stretched(value):
        return tuple(map(stretched, value)) if isinstance(value, (tuple, list)) else int(round(value / scale))

    solver = {key: stretched(cfg.SOLVER[key]) for key in SCHEDULE}
    solver |= {"IMS_PER_BATCH": int(round(cfg.SOLVER.IMS_PER_BATCH * scale)), "BASE_LR": cfg.SOLVER.BASE_LR * scale}
    return solver | {"EVAL_PERIOD": stretched(cfg.TEST.EVAL_PERIOD)}


def set_solver(cfg: CfgNode, values: Mapping[str, object]) -> None:
    for key, value in values.items():
        cfg["TEST" if key == "EVAL_PERIOD" else "SOLVER"][key] = value


def refuse_overrides(overridden: list[str], scale: float) -> None:
    """Raise UserError for overrides that the linear rule cannot be combined with."""
    if "IMS_PER_BATCH" in overridden:
        raise UserError(
            "SOLVER.IMS_PER_BATCH alone would be another training (rate and schedule belong to the batch): "
            "give --batch N, which scales them too, or --as-given to train exactly what is written"
        )
    if overridden and scale != 1:
        raise UserError(
            f"SOLVER.{overridden[0]} is overridden while batch and schedule are scaled by {scale:g}: leave it to the "
            "linear rule, or give --as-given to train exactly what is written"
        )


def passes_for(batch: int, workers: int, images_per_gpu: int) -> int:
    """The fewest equal passes of at most `images_per_gpu` images in which `workers` processes share the batch."""
    check_share(batch, workers)
    share = batch // workers
    if images_per_gpu < 1:
        raise UserError(f"--images-per-gpu {images_per_gpu}: at least 1 is needed")
    return next(n for n in range(1, share + 1) if share % n == 0 and share // n <= images_per_gpu)


def check_share(batch: int, workers: int) -> None:
    if batch < 1 or batch % workers:
        raise UserError(f"a batch of {batch} images cannot be shared evenly by {workers} GPUs; choose another --batch")


def differences(cfg: CfgNode, recipe: CfgNode) -> list[str]:
    """`SOLVER.KEY recipe -> now` for each planned setting that differs."""
    keys = [key for key in PLANNED if cfg.SOLVER[key] != recipe.SOLVER[key]]
    return [f"SOLVER.{key} {_text(recipe.SOLVER[key])} -> {_text(cfg.SOLVER[key])}" for key in keys]


def describe(plan: BatchPlan) -> list[str]:
    """The plan in lines for the user."""
    lines = [f"plan: {plan.rule}, batch {plan.batch} = {plan.workers} process(es) x {plan.passes} pass(es) x "
             f"{plan.images_per_pass} image(s)"]  # fmt: skip
    lines += [f"  differs from the recipe: {line}" for line in plan.differences]
    if plan.passes > 1:
        lines.append("  gradients are accumulated; BatchNorm sees the images of one pass")
    return lines


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
