"""Fit a config to another number of GPUs: the linear rule, or the config's own batch by gradient accumulation.

A config is written for SOLVER.REFERENCE_WORLD_SIZE GPUs. detectron2's own trainer applies the same rule to that key, so
its stock scripts train the same as ours. Every change is reported. "Recipe" means the config file without overrides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from detectron2.config import CfgNode

from adco.utils.errors import UserError

SCHEDULE = ("MAX_ITER", "STEPS", "WARMUP_ITERS", "CHECKPOINT_PERIOD")  # in iterations: divided by the batch's factor
PLANNED = ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")


@dataclass(frozen=True)
class BatchPlan:
    """How a config is run on several processes.

    Attributes:
        rule: `reference` (nothing changed), `linear` (batch and schedule scaled) or `as given` (overrides as written).
        workers: Number of processes, one for each GPU.
        batch: Images of one optimiser step, over all processes and passes.
        passes: Forward and backward passes of each process in one step; more than one accumulates gradients.
        differences: A line for each setting that differs from the config file.
    """

    rule: str
    workers: int
    batch: int
    passes: int
    differences: tuple[str, ...]

    @property
    def images_per_pass(self) -> int:
        """Images of one forward pass of one process."""
        return self.batch // (self.workers * self.passes)


def plan(
    cfg: CfgNode,
    recipe: CfgNode,
    workers: int,
    batch: int | None = None,
    images_per_gpu: int | None = None,
    as_given: bool = False,
) -> BatchPlan:
    """Set `cfg.SOLVER` for `workers` processes.

    Args:
        cfg: Config file and overrides; changed in place.
        recipe: The config file alone.
        workers: Number of processes, one for each GPU.
        batch: Images of one optimiser step. Default: the recipe's images per GPU times `workers`.
        images_per_gpu: Images that one GPU holds at once; a larger share of the batch is accumulated over several
            passes. Default: the recipe's images per GPU.
        as_given: Scale nothing and train what `cfg` says, in one pass unless `images_per_gpu` is given.

    Returns:
        The rule that was applied and what differs from the recipe.

    Raises:
        UserError: Overrides contradict the scaling, or the batch cannot be divided among the processes.
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
    """The linear scaling rule (Goyal et al. 2017): batch and learning rate times `scale`, the schedule divided by it.

    Returns:
        The new values of SOLVER by key, and TEST's as EVAL_PERIOD.
    """

    def divided(value):
        return tuple(map(divided, value)) if isinstance(value, (tuple, list)) else int(round(value / scale))

    solver: dict[str, object] = {key: divided(cfg.SOLVER[key]) for key in SCHEDULE}
    solver |= {"IMS_PER_BATCH": int(round(cfg.SOLVER.IMS_PER_BATCH * scale)), "BASE_LR": cfg.SOLVER.BASE_LR * scale}
    return solver | {"EVAL_PERIOD": divided(cfg.TEST.EVAL_PERIOD)}


def set_solver(cfg: CfgNode, values: Mapping[str, object]) -> None:
    """Write the values that `scaled` returns into the config."""
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
    """The smallest number of equal passes in which each process has at most `images_per_gpu` images at once."""
    check_share(batch, workers)
    share = batch // workers
    if images_per_gpu < 1:
        raise UserError(f"--images-per-gpu {images_per_gpu}: at least 1 is needed")
    return next(n for n in range(1, share + 1) if share % n == 0 and share // n <= images_per_gpu)


def check_share(batch: int, workers: int) -> None:
    """Raise UserError unless the batch can be divided evenly among the processes."""
    if batch < 1 or batch % workers:
        raise UserError(f"a batch of {batch} images cannot be shared evenly by {workers} GPUs; choose another --batch")


def differences(cfg: CfgNode, recipe: CfgNode) -> list[str]:
    """`SOLVER.KEY recipe -> now` for each setting of PLANNED that differs."""
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
