"""MODEL_ZOO.md and the table of README.md, from the zoo's manifest, the recipes, published numbers and records."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from adco.config.loading import RECIPES, load_recipe
from adco.config.schema import PretrainConfig
from adco.config.validation import BANKED
from adco.evaluation.published import Published, load_published
from adco.evaluation.records import Record, load_record
from adco.report.elements import MISSING, Notes
from adco.report.model_zoo_tables import cell, comparable, family_of, headlines, linked, measured, models_table, printed
from adco.report.text_table import markdown_table
from adco.utils.errors import UserError
from adco.utils.serialization import build
from adco.weights.manifest import MANIFEST, Model, read_manifest

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
    """The whole file.

    Args:
        results: Folder with MODEL/RECORD.json.

    Raises:
        UserError: The folder has no records, or one of them cannot be read.
    """
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
        notes.numbered(),
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
    """The table of README.md: a row for each folder of results, with links to its records. Raises as `page` does."""
    records, rows = read_results(results), {}
    for path, record in records.items():
        for metric in headlines(record):
            if (column := (record.protocol, metric)) in README_COLUMNS:
                row = rows.setdefault(path.split("/")[-2], dict.fromkeys(README_COLUMNS, MISSING.text))
                row[column] = cell(record.scores[metric], path, ", {} to {}")
    names = ("ResNet-18", *README_COLUMNS.values())
    return "\n" + markdown_table(names, [(linked(model), *row.values()) for model, row in rows.items()]) + "\n"


def read_results(results: Path) -> dict[str, Record]:
    """`results/MODEL/RECORD.json` -> its record, for evaluations and pretraining runs. Raises as `page` does."""
    paths = sorted(results.glob("*/*.json"))
    if not paths:
        raise UserError(f"{results}: no records; expected MODEL/RECORD.json below it")
    records = {f"{results.name}/{path.relative_to(results).as_posix()}": load_record(path) for path in paths}
    return {path: record for path, record in records.items() if family_of(record)}


def checkpoints_table(models: Mapping[str, Model], records: Mapping[str, Record], notes: Notes) -> str:
    """A row for each model of the manifest."""
    rows = []
    for model in models.values():
        ours = _of_checkpoint(model, records)
        where = f"[in the package](adco/weights/{model.file})" if model.file else f"[link]({model.mirrors[0]})"
        size = f"{model.bytes / 1e6:.1f} MB" if model.bytes else ""
        licence = (model.licence or "").split(" (")[0]
        cells = (
            model.epochs or "-",
            f"[recipe](adco/recipes/{model.recipe}.yaml)" if model.recipe else "-",
            "<br>".join(_owners(score) for score in model.scores) or "-",
            "<br>".join(ours) or ("below" if model.file else MISSING.text),
            ", ".join(filter(None, (where, size, licence))),
            _checksum(model),
        )
        rows.append((f"`{model.name}`{notes.marks(model.note)}", *cells))
    return markdown_table(("model", "epochs", "config", "owner's", "ours", "file, size, licence", "checksum"), rows)


def recipes_table(
    recipes: Mapping[str, PretrainConfig], published: Sequence[Published], records: Mapping[str, Record], notes: Notes
) -> str:
    """A row for each recipe: its settings, ImageNet linear top-1 as published and ours, and the published cost."""
    rows = []
    for name, recipe in recipes.items():
        own = [row for row in published if row.recipe == name]
        linear = [row for row in own if (row.metric, row.data) == ("top1", "ImageNet")]
        ours = [
            cell(record.scores["top1"], path)
            for path, record in records.items()
            if record.checkpoint.pretrained.recipe == name
            and record.data.official
            and record.protocol.startswith("imagenet-linear/")
        ]
        bank = recipe.bank.size if recipe.method in BANKED else "-"
        cost = [row for row in own if row.metric == "gpu_hours_per_epoch"]
        cells = (bank, printed(linear, notes), "<br>".join(ours) or MISSING.text, printed(cost, notes))
        rows.append((f"[`{name}`](adco/recipes/{name}.yaml)", recipe.epochs, recipe.batch, *cells))
    heads = "recipe", "epochs", "batch", "K", "linear top-1, paper", "ours", "GPU hours an epoch, paper"
    return markdown_table(heads, rows)


def transfer_table(rows: Sequence[Published], records: Mapping[str, Record], notes: Notes) -> str:
    """Table 4 transposed: a row for each number with its protocol."""
    lines = []
    for row in sorted((row for row in rows if row.method == "AdCo"), key=lambda row: (row.protocol, row.metric)):
        same = [path for path, record in records.items() if row.metric in record.scores and comparable(record, row)]
        ours = "<br>".join(cell(records[path].scores[row.metric], path) for path in same) or MISSING.text
        paper = f"{row.text}{notes.marks(row.caution, row.ambiguous)}"
        lines.append((row.label, f"`{row.protocol}`", row.metric, paper, ours))
    return markdown_table(("model", "protocol", "metric", "paper", "ours"), lines)


def _owners(score: Mapping[str, object]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in score.items() if name not in ("protocol", "source"))
    return f"{re.sub('^detection/', '', str(score['protocol']))}: {values}"


def _checksum(model: Model) -> str:
    if model.sha256:
        return f"`sha256:{model.sha256[:12]}…`"
    return f"`{model.hash_prefix}…`" if model.hash_prefix else "at first download"


def _of_checkpoint(model: Model, records: Mapping[str, Record]) -> list[str]:
    """`PROTOCOL METRIC SCORE` of the records of this file on official data."""
    if not model.sha256:
        return []
    own = {p: r for p, r in records.items() if r.checkpoint.pretrained.sha256 == model.sha256 and r.data.official}
    return [f"{r.protocol} {name} {cell(r.scores[name], p)}" for p, r in own.items() for name in headlines(r)]


def of_zoo(models: Mapping[str, Model]) -> tuple[Published, ...]:
    """The scores that the owners of the zoo's checkpoints publish, as published numbers."""
    rows = []
    for model in models.values():
        for score in model.scores:
            values = {key: value for key, value in score.items() if key not in ("protocol", "source")}
            for metric, value in values.items():
                row = {"table": f"zoo/{model.name}", "source": f"{model.method} {score['source']}", "value": value}
                row |= {"method": model.method, "metric": f"mAP/{metric}" if metric[1:].isdigit() else metric}
                row |= {"unit": "percent", "protocol": score["protocol"], "data": _data_of(str(score["protocol"]))}
                row |= {"epochs": model.epochs, "recipe": model.recipe, "multicrop": "multicrop" in model.name}
                rows.append(build(Published, row, f"zoo.yaml: {model.name}"))
    return tuple(rows)


def _data_of(protocol: str) -> str:
    names = {"voc07": "VOC2007", "places205": "Places205", "detection/pascal": "VOC07+12", "detection/coco": "COCO"}
    return next((data for start, data in names.items() if protocol.startswith(start)), "ImageNet")
