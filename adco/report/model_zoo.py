"""MODEL_ZOO.md, whole, from the zoo's manifest, the recipes, the published numbers and the records."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from adco.config.loading import RECIPES, load_recipe
from adco.config.schema import PretrainConfig
from adco.evaluation.comparison import incompatibilities
from adco.evaluation.published import Published, load_published
from adco.evaluation.records import Record, Score, load_record
from adco.report.model_zoo_tables import (
    Notes,
    cell,
    family_of,
    headlines,
    linked,
    measured,
    models_table,
    printed,
    table,
)  # fmt: skip
from adco.utils.errors import UserError
from adco.utils.serialization import build
from adco.weights.manifest import MANIFEST, Model, read_manifest

BANKED = ("adco", "caco", "moco", "mochi")  # methods with adversaries or a queue

INTRO = """\
# Model zoo

This file is made by `python tools/report.py --zoo MODEL_ZOO.md --readme README.md`; a test fails when it is stale.

## How to read it

- A score belongs to the **protocol** it was obtained under ([docs/protocols.md](docs/protocols.md)). Two protocols, two
  image sizes or two data sets are never in one column.
- **Paper** and **owner's** columns hold what others print, with the place where they print it. **Ours** holds what this
  code measured: each links to its record with hardware, commit, seed and command. What was not run says "not run".
- Under a score stands its 95% interval over the test images (bootstrap), or beside it `±` the deviation over trials.
  Records of before intervals were kept have neither. Percent throughout.
- Scores on Imagenette, on small subsets of VOC and COCO, and on the drawn sample compare runs with one another. They
  are not ImageNet, VOC07 or COCO numbers.

## Common settings

ResNet with torchvision's names and torchvision's stride (in the 3x3 convolution), RGB, ImageNet mean and deviation.
MoCo's two-layer head (128-d) unless the recipe says otherwise, SGD with momentum 0.9 and weight decay 1e-4, MoCo v2's
augmentation. Every recipe names where it follows the paper and where the released code (`# choices:` in its header).
"""
CHECKPOINTS = """\
## Checkpoints

`zoo://NAME` wherever a tool takes a checkpoint ([docs/zoo.md](docs/zoo.md)). Where no checksum is published, the sha256
of the first download is recorded and enforced from then on. The owner's scores are under the owner's protocol.
"""
TRANSFER = """\
### What the AdCo paper prints of its transfer (table 4)

Its other rows came about in other ways (DETR on COCO, SVMs on VOC07) and stand in `adco/evaluation/published.yaml`.
"""


def page(results: Path) -> str:
    """The whole file. results: the folder of MODEL/RECORD.json. Raises UserError when it has none."""
    records = read_results(results)
    models, published, notes = read_manifest(MANIFEST), load_published(), Notes()
    recipes = {path.stem: load_recipe(path) for path in sorted(RECIPES.glob("*_r50_*.yaml"))}
    parts = [
        INTRO,
        CHECKPOINTS,
        checkpoints_table(models, records, notes),
        "## Recipes: ResNet-50, ImageNet\n",
        recipes_table(recipes, [*published, *of_zoo(models)], records, notes),
        TRANSFER,
        transfer_table([row for row in published if row.table == "adco-4"], records, notes),
        "## Measured here\n",
        models_table(records),
        *measured(records, published, notes),
        notes.lines(),
    ]
    return "\n".join(parts)


README_TABLE = ("<!-- table: tools/report.py --zoo writes it -->", "<!-- end of table -->")
README_COLUMNS = {  # protocol, metric -> header
    ("knn/k20-t0.07@64px", "top1"): "kNN",
    ("linear/cached-features@64px", "top1"): "linear",
    ("imagenet-semi/swav-10pct-batch64@64px", "top1"): "10% of the labels",
    ("voc07-svm/vissl@96px", "mAP"): "VOC07 SVM, 600 images",
}


def readme_table(results: Path) -> str:
    """What the package's own models reach, beside random weights: a row a folder of results, linked to its records."""
    records, rows = read_results(results), {}
    for path, record in records.items():
        for metric in headlines(record):
            if (column := (record.protocol, metric)) in README_COLUMNS:
                row = rows.setdefault(path.split("/")[-2], dict.fromkeys(README_COLUMNS, "not run"))
                row[column] = cell("", record.scores[metric], path).replace("<br>", ", ")
    names = ("ResNet-18", *README_COLUMNS.values())
    return "\n" + table(names, [(linked(model), *row.values()) for model, row in rows.items()]) + "\n"


def read_results(results: Path) -> dict[str, Record]:
    """`results/MODEL/RECORD.json` -> its record, for those that judge a model. Raises UserError where there is none."""
    paths = sorted(results.glob("*/*.json"))
    if not paths:
        raise UserError(f"{results}: no records; expected MODEL/RECORD.json below it")
    found = {f"{results.name}/{path.relative_to(results).as_posix()}": load_record(path) for path in paths}
    return {path: record for path, record in found.items() if family_of(record)}


def checkpoints_table(models: Mapping[str, Model], records: Mapping[str, Record], notes: Notes) -> str:
    """One row a model of the manifest."""
    rows = []
    for model in models.values():
        ours = [cell(name, score, path) for path, name, score in _of_checkpoint(model, records)]
        where = f"[in the package](adco/weights/{model.file})" if model.file else f"[link]({model.mirrors[0]})"
        size = f"{model.bytes / 1e6:.1f} MB" if model.bytes else ""
        licence = (model.licence or "").split(" (")[0]
        cells = (
            model.epochs or "-",
            f"[recipe](adco/recipes/{model.recipe}.yaml)" if model.recipe else "-",
            "<br>".join(_owners(score) for score in model.scores) or "-",
            "<br>".join(ours) or ("below" if model.file else "not run"),
            ", ".join(filter(None, (where, size, licence))),
            _checksum(model),
        )
        rows.append((f"`{model.name}`{notes.mark(model.note)}", *cells))
    return table(("model", "epochs", "config", "owner's", "ours", "file, size, licence", "checksum"), rows)


def recipes_table(
    recipes: Mapping[str, PretrainConfig], published: Sequence[Published], records: Mapping[str, Record], notes: Notes
) -> str:
    """One row a recipe: what it is, what the papers print of its ImageNet linear top-1 and its cost, and ours."""
    rows = []
    for name, recipe in recipes.items():
        own = [row for row in published if row.recipe == name]
        linear = [row for row in own if (row.metric, row.data) == ("top1", "ImageNet")]
        ours = [
            cell("", record.scores["top1"], path)
            for path, record in records.items()
            if record.checkpoint.pretrained.recipe == name
            and record.data.official
            and record.protocol.startswith("imagenet-linear/")
        ]
        bank = recipe.bank.size if recipe.method in BANKED else "-"
        cost = [row for row in own if row.metric == "gpu_hours_per_epoch"]
        cells = (bank, printed(linear, notes), "<br>".join(ours) or "not run", printed(cost, notes))
        rows.append((f"[`{name}`](adco/recipes/{name}.yaml)", recipe.epochs, recipe.batch, *cells))
    return table(("recipe", "epochs", "batch", "K", "linear top-1, paper", "ours", "GPU hours an epoch, paper"), rows)


def transfer_table(rows: Sequence[Published], records: Mapping[str, Record], notes: Notes) -> str:
    """Table 4 turned round: one row a number, under the protocol it came from."""
    lines = []
    for row in sorted((row for row in rows if row.method == "AdCo"), key=lambda row: (row.protocol, row.metric)):
        ours = [
            cell("", record.scores[row.metric], path)
            for path, record in records.items()
            if row.metric in record.scores and not [r for r in incompatibilities(record, row) if "caution" not in r]
        ]
        paper = f"{row.value:.1f}{notes.mark(row.caution, row.ambiguous)}"
        lines.append((row.label, f"`{row.protocol}`", row.metric, paper, "<br>".join(ours) or "not run"))
    return table(("model", "protocol", "metric", "paper", "ours"), lines)


def _owners(score: Mapping[str, object]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in score.items() if name not in ("protocol", "source"))
    return f"{re.sub('^detection/', '', str(score['protocol']))}: {values}"


def _checksum(model: Model) -> str:
    if model.sha256:
        return f"`sha256:{model.sha256[:12]}…`"
    return f"`{model.hash_prefix}…`" if model.hash_prefix else "at first download"


def _of_checkpoint(model: Model, records: Mapping[str, Record]) -> list[tuple[str, str, Score]]:
    """(path, protocol and metric, score) of the records on official data that judge this file."""
    if not model.sha256:
        return []
    own = {p: r for p, r in records.items() if r.checkpoint.pretrained.sha256 == model.sha256 and r.data.official}
    return [(path, f"{r.protocol} {name}", r.scores[name]) for path, r in own.items() for name in headlines(r)]


def of_zoo(models: Mapping[str, Model]) -> tuple[Published, ...]:
    """What the owners of the zoo's checkpoints print, from the manifest: {protocol, source, metric: value ...}."""
    found = []
    for model in models.values():
        for score in model.scores:
            values = {key: value for key, value in score.items() if key not in ("protocol", "source")}
            for metric, value in values.items():
                row = {"table": f"zoo/{model.name}", "source": f"{model.method} {score['source']}", "value": value}
                row |= {"method": model.method, "metric": f"mAP/{metric}" if metric[1:].isdigit() else metric}
                row |= {"unit": "percent", "protocol": score["protocol"], "data": _data_of(str(score["protocol"]))}
                row |= {"epochs": model.epochs, "recipe": model.recipe, "multicrop": "multicrop" in model.name}
                found.append(build(Published, row, f"zoo.yaml: {model.name}"))
    return tuple(found)


def _data_of(protocol: str) -> str:
    names = {"voc07": "VOC2007", "places205": "Places205", "detection/pascal": "VOC07+12", "detection/coco": "COCO"}
    return next((data for start, data in names.items() if protocol.startswith(start)), "ImageNet")
