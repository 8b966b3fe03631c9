"""The tables of cost: what the published recipes compute, and what our own runs took."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from adco.config.loading import as_recipe, load_recipe
from adco.config.schema import PretrainConfig
from adco.report import cost
from adco.report.accuracy_curves import METHOD_STYLES
from adco.report.collect import Run, Study
from adco.report.elements import MISSING, NOT_RUN, Cell, Column, Section, Table, measured, published
from adco.report.result_tables import link
from adco.utils.errors import UserError
from adco.utils.serialization import plain

RECIPES = {  # row: recipe
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
IMAGENET = 1_281_167  # training images
NOT_KEPT = Cell("–", note="not in the run's metrics, or these were not kept")
NOT_COUNTED = Cell("–", note="fvcore is not installed")


def section(study: Study, out: Path, hours: Mapping[str, float]) -> Section:
    """hours: recipe -> the paper's GPU hours an epoch, where it prints them."""
    lead = (
        "A step is what training on one image computes: forward and backward through the trained encoder for every "
        "query view (a backward pass counts as two forward ones), forward through the key encoder, and the products "
        "with the bank. fvcore counts ResNet, head, predictor and prototypes, one multiply-add as one; "
        "GPU hours come from records made on GPUs alone."
    )
    blocks = [recipe_table(hours, study.runs, out), *([run_table(study.runs, out)] if study.runs else [])]
    return Section("cost", "Cost", [lead], blocks)


def recipe_table(hours: Mapping[str, float], runs: Sequence[Run], out: Path) -> Table:
    """Tables 2 and 5's cost column for the published recipes, ResNet-50; ours from a run of the same on ImageNet."""
    columns = [
        Column("recipe", numeric=False),
        Column("paper", "GPU hours an epoch"),
        Column("ours", "GPU hours an epoch"),
        Column("G multiply-adds", "step, one image"),
        Column("to MoCo v2", "step, one image"),
        Column("bank's share", "step, one image"),
        *(Column(name, "parameters, millions") for name in ("backbone", "head", "tail", "bank")),
    ]
    (_, base), rows = _published_counts("moco_r50_200ep"), []
    for name, file in RECIPES.items():
        parameters, work = _published_counts(file)
        ours = next((hours_cell(run, out) for run in runs if _is_of(run, file)), MISSING)
        rows.append((Cell(name, note=file), _hours(hours.get(file)), ours, *_work(work, base), *_millions(parameters)))
    notes = (
        "tail: BYOL's and SimSiam's predictor, SwAV's prototypes. bank: rows that are trained, of MoCo v2 and MoCHi "
        "a queue that is not. The paper's hardware: table 2.",
    )
    caption = "ResNet-50, 224 px, the recipes of this project; counted, not timed."
    return Table(
        "cost-recipes", "Arithmetic and parameters of the published recipes", columns, rows, caption, notes=notes
    )


@functools.cache
def _published_counts(file: str) -> tuple[cost.Parameters, cost.Work | None]:
    return cost.counted(load_recipe(file))


def _is_of(run: Run, file: str) -> bool:
    """Whether a run that has ended is of a published recipe, in what moves its cost, on the whole of ImageNet."""
    if run.record is None or run.record.data.counts.get("images") != IMAGENET:
        return False
    wanted, has = asdict(load_recipe(file)), plain(run.recipe)
    return all(has.get(name) == plain(wanted[name]) for name in (*cost.MOVING, "batch"))


def hours_cell(run: Run, out: Path) -> Cell:
    """GPU hours of an epoch: a run's whole duration times the GPUs there were, over its epochs. Of a CPU: not run."""
    if run.record is None:
        return Cell("–", note="it has no record: it has not ended")
    gpus = re.match(r"(\d+) x ", run.record.hardware)
    if not gpus or run.recipe.get("device") == "cpu":
        return Cell("not run on a GPU", NOT_RUN)
    hours = run.record.duration_seconds / 3600 * int(gpus[1]) / run.record.settings["epochs"]
    return measured(hours, 2 if hours >= 0.1 else 4, href=link(run.path, out), note=run.record.hardware)


def _hours(value: float | None) -> Cell:
    return published(value, "" if value is None else f"{value:.2f}")


def _work(work: cost.Work | None, base: cost.Work | None) -> tuple[Cell, Cell, Cell]:
    if work is None or base is None:
        return (NOT_COUNTED,) * 3
    share = 100 * work.bank / work.step
    return (
        Cell(f"{work.step / 1e9:.2f}", value=work.step / 1e9),
        Cell(f"{work.step / base.step:.2f}", value=work.step / base.step),
        Cell(f"{share:.2f} %" if work.bank else "–", value=share),
    )


def _millions(counted: cost.Parameters) -> tuple[Cell, ...]:
    parts = counted.backbone, counted.head, counted.tail, counted.bank
    return tuple(Cell(f"{part / 1e6:.2f}" if part else "–", value=part / 1e6) for part in parts)


def run_table(runs: Sequence[Run], out: Path) -> Table:
    """Our own pretraining runs: speed with the hardware it was reached on, and memory where a GPU told it."""
    columns = [
        Column("run", numeric=False),
        Column("method", numeric=False),
        Column("network and view", numeric=False),
        Column("batch"),
        Column("epochs"),
        Column("GPU hours an epoch"),
        Column("images/s"),
        Column("waiting for images"),
        Column("GPU memory, GiB"),
        Column("G multiply-adds, step, one image"),
        Column("hardware", numeric=False),
    ]
    rows = [_run_row(run, out) for run in runs]
    reported = [i for i, cells in enumerate(zip(*rows, strict=True)) if any(cell.text != "–" for cell in cells)]
    columns, rows = [columns[i] for i in reported], [tuple(row[i] for i in reported) for row in rows]
    caption = (
        "GPU hours: the whole run's, with its probes. images/s: median over the run's metrics after its first tenth, "
        "where they were kept; other work on the machine is not taken out."
    )
    return Table("cost-runs", "Our pretraining runs", columns, rows, caption)


def _run_row(run: Run, out: Path) -> tuple[Cell, ...]:
    speed = cost.speed_of(run.rows)
    try:
        recipe = as_recipe(run.path, dict(run.recipe))
        facts = _facts(recipe)
    except UserError as error:
        facts = (Cell("–", note=f"its recipe cannot be read: {error}"), *[Cell("–")] * 3, NOT_COUNTED)
    method, network, batch, _, step = facts
    past = [float(row["epoch"]) for row in run.rows] or [run.record.settings["epochs"] if run.record else 0]
    rate = NOT_KEPT if speed is None else measured(speed.images_per_second, 1, note=f"median of {speed.rows} rows")
    waiting = Cell("–") if speed is None or speed.waiting is None else Cell(f"{100 * speed.waiting:.1f} %")
    memory = NOT_KEPT if speed is None or speed.gpu_memory_gib is None else measured(speed.gpu_memory_gib)
    hardware = Cell(run.record.hardware if run.record else "–")
    cells = Cell(run.name, href=link(run.path, out)), method, network, batch, Cell(f"{max(past):g}")
    return *cells, hours_cell(run, out), rate, waiting, memory, step, hardware


def _facts(recipe: PretrainConfig) -> tuple[Cell, ...]:
    (_, work), sizes = cost.counted(recipe), sorted({view.px for view in recipe.views}, reverse=True)
    px = (
        f"{len(recipe.views)} x {sizes[0]} px"
        if len(sizes) == 1
        else f"{len(recipe.views)} views, {sizes[0]}–{sizes[-1]} px"
    )
    symmetric = " symmetric" if recipe.contrast.symmetric else ""
    return (
        Cell(METHOD_STYLES[recipe.method][0] + symmetric),
        Cell(f"{recipe.encoder.arch}, {px}"),
        Cell(str(recipe.batch), value=recipe.batch),
        Cell(str(recipe.epochs), value=recipe.epochs),
        NOT_COUNTED if work is None else Cell(f"{work.step / 1e9:.2f}", value=work.step / 1e9),
    )
