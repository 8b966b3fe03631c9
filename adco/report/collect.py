"""The contents of a report: records, pretraining runs and images below some folders; broken files are listed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from adco.evaluation.records import Record, load_record
from adco.train.logger import read_metrics
from adco.utils.errors import UserError

RECORD_KEYS = {"protocol", "scores"}  # a JSON file with one of them is read as a record
IGNORED = {"features", "inference", "tensorboard", "world"}  # folders of caches, predictions, logs, generated images


@dataclass(frozen=True)
class Item:
    """A record, its file, and the name of its model: the folder below the given one."""

    path: Path
    model: str
    record: Record


@dataclass(frozen=True)
class Run:
    """A pretraining run.

    Attributes:
        name: Its folder below the given one.
        path: Its `metrics.jsonl`, or its record if there are no metrics.
        rows: Rows of the metrics.
        recipe: Its recipe as plain containers.
        record: Its record; None if it is not finished.
    """

    name: str
    path: Path
    rows: Sequence[Mapping[str, float]]
    recipe: Mapping[str, Any]
    record: Record | None = None


@dataclass(frozen=True)
class Study:
    """All results of a report. maps: JSON files of tools/draw_bank.py; broken: (file, why it cannot be read)."""

    items: Sequence[Item] = ()
    runs: Sequence[Run] = ()
    maps: Sequence[Path] = ()
    broken: Sequence[tuple[Path, str]] = field(default_factory=tuple)

    @property
    def models(self) -> list[str]:
        """Names of the evaluated models, in the order of their first appearance."""
        return list(dict.fromkeys(item.model for item in self.items if is_evaluation(item.record)))


def is_evaluation(record: Record) -> bool:
    """Whether a record evaluates a checkpoint, unlike a speed benchmark or a pretraining run."""
    return not record.protocol.startswith(("benchmark", "pretrain"))


def gather(sources: Sequence[str]) -> Study:
    """All results below some sources. A broken record among others is listed in `Study.broken`.

    Args:
        sources: Folders, files, or NAME=FOLDER to name the model of the records.

    Raises:
        UserError: A source does not exist, or none of them has a record or a `metrics.jsonl`.
    """
    items: list[Item] = []
    runs: list[Run] = []
    maps: list[Path] = []
    broken: list[tuple[Path, str]] = []
    for source in sources:
        name, path = _named(source)
        records = list(_records(path, maps, broken))
        labels = [name] * len(records) if name else _labels(path, records)
        items += [Item(file, label, record) for (file, record), label in zip(records, labels, strict=True)]
        for file in sorted(path.rglob("metrics.jsonl")) if path.is_dir() else ():
            try:
                runs.append(_run(file, name or _below(path, file)))
            except UserError as error:
                broken.append((file, str(error)))
    runs += _runs_without_metrics(items, runs)
    if not items and not runs:
        reason = f"; {len(broken)} files are no records, the first: {broken[0][1]}" if broken else ""
        raise UserError(f"{', '.join(map(str, sources))}: no records and no metrics.jsonl{reason}")
    return Study(_name_by_checkpoint(items), runs, maps, broken)


def _named(source: str) -> tuple[str, Path]:
    name, equals, rest = str(source).partition("=")
    plain = Path(source).exists() or not equals
    name, path = ("", Path(source)) if plain else (name, Path(rest))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a record, or a folder with records below it")
    return name, path


def _records(path: Path, maps: list[Path], broken: list[tuple[Path, str]]) -> Iterator[tuple[Path, Record]]:
    """Files that are records. Unreadable records are added to `broken`; other JSON files are ignored."""
    for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
        if path.is_dir() and IGNORED & set(file.relative_to(path).parts[:-1]):
            continue
        try:
            kind = "record" if path.is_file() else _kind(file)
            if kind == "record":
                yield file, load_record(file)
            elif kind == "map":
                maps.append(file)
        except UserError as error:
            broken.append((file, str(error).removeprefix(f"{file}: ")))


def _kind(file: Path) -> str:
    """What a JSON file is: a `record`, a `map` of the bank, or neither (empty)."""
    try:
        with file.open("rb") as stream:
            if stream.read(256).lstrip()[:1] not in (b"{", b""):  # a list, of detections for example
                return ""
        content = json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError:
        return "" if file.name == "metrics.json" else "record"  # detectron2's has one JSON a line
    if not isinstance(content, dict):
        return ""
    runs = content.get("runs")
    if isinstance(runs, list) and runs and all(isinstance(run, dict) and "outlier_share" in run for run in runs):
        return "map"
    return "record" if RECORD_KEYS & content.keys() else ""


def _labels(path: Path, records: Sequence[tuple[Path, Record]]) -> list[str]:
    """The first folder below `path`; if several folders hold records of one checkpoint only, `path` itself."""
    first = [_below(path, file) for file, _ in records]
    folders = defaultdict(set)
    for (_, record), folder in zip(records, first, strict=True):
        if identity(record):
            folders[identity(record)].add(folder)
    one_model = len(folders) == 1 and len(next(iter(folders.values()))) > 1
    return [path.resolve().name if one_model else folder for folder in first]


def _below(path: Path, file: Path) -> str:
    parts = file.relative_to(path).parts if path.is_dir() else ()
    return parts[0] if len(parts) > 1 else file.resolve().parent.name


def identity(record: Record) -> str:
    """The sha256 of the evaluated checkpoint, for a converted file that of its origin; empty if not known."""
    return record.checkpoint.pretrained.sha256


def _name_by_checkpoint(items: Sequence[Item]) -> list[Item]:
    """Name the models of a folder with several checkpoints by the names of their files.

    `adco-s0-knn-k20@64px.json` with the protocol `knn/k20@64px` is of `adco-s0`; so are all others of that checkpoint.
    """
    held = defaultdict(set)
    for item in items:
        if is_evaluation(item.record):
            held[item.model].add(identity(item.record))
    mixed = {model for model, checkpoints in held.items() if len(checkpoints - {""}) > 1}
    names: dict[str, str] = {}
    for item in sorted(items, key=lambda item: item.model in mixed):  # a folder of one checkpoint names it best
        stem, protocol = item.path.stem, item.record.protocol.replace("/", "-")
        own = stem.removesuffix(f"-{protocol}") if stem.endswith(f"-{protocol}") else ""
        name = item.model if item.model not in mixed else own
        if name and identity(item.record) and is_evaluation(item.record):
            names.setdefault(identity(item.record), name)
    return [
        replace(item, model=names.get(identity(item.record)) or item.path.stem) if item.model in mixed else item
        for item in items
    ]


def _run(file: Path, name: str) -> Run:
    """A run from its metrics, with the recipe and the record beside them if they exist."""
    rows = [row for row in read_metrics(file) if isinstance(row, dict) and "epoch" in row]
    recipe, record = {}, None
    try:
        recipe = yaml.safe_load((file.parent / "recipe.yaml").read_text()) or {}
    except OSError:
        pass
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"recipe.yaml beside it cannot be read ({' '.join(str(error).split())[:120]})") from error
    if (file.parent / "record.json").is_file():
        record = load_record(file.parent / "record.json")
    inside = file.parent.name if file.parent.name != name else ""
    recipe = recipe or (record.settings if record else {})
    return Run(f"{name}/{inside}" if inside else name, file, rows, recipe, record)


def _runs_without_metrics(items: Sequence[Item], runs: Sequence[Run]) -> list[Run]:
    """Runs of which only the record was kept."""
    known, lone = {run.path.parent for run in runs}, []
    for item in items:
        if item.record.protocol.startswith("pretrain/") and item.path.parent not in known:
            folder, stem = item.path.resolve().parent.name, item.path.stem
            name = folder if stem in ("pretrain", "record") else f"{folder}/{stem}"
            lone.append(Run(name, item.path, (), item.record.settings, item.record))
    return lone
