"""Suites of stages, read from YAML files. The keys of a stage are the fields of `Stage`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adco.data.datasets.locate import KINDS
from adco.utils.errors import UserError
from adco.utils.serialization import build, did_you_mean
from adco.utils.yaml_io import read_yaml

FOLDER = Path(__file__).parent
# Each setting, and what a value other than the protocol's adds to the protocol's name.
SETTINGS = {"image_px": "@{}px", "epochs": "-{}ep", "iterations": "-{}it"}
TRANSFER_PX = 224


@dataclass(frozen=True)
class Stage:
    """One stage of a suite: a command of this project and the records that it writes.

    Attributes:
        name: The stage's name.
        tool: The script, relative to the project's root.
        data: The datasets that it needs (adco/data/datasets/locate.py); the first is the tool's --data.
        records: The names of the protocols that it writes. {image_px}, {epochs} and {iterations} become empty or what
            a setting adds to the name, {depth} the ResNet's depth. A setting without its place here is refused.
        arguments: The script's own arguments, its protocols among them.
        config: The config file of a detector; empty for other stages.
        trials: How often the detector is trained, each time with another seed.
        saves: How many checkpoints of the detector stay on the disk.
        standard: The protocol's own settings.
        settings: The chosen settings: image_px, epochs, iterations.
        passes: For each split, how often its images go through the network: a number, or `epochs`.
        vectors: The features that are kept of each image, in units of the network's width.
        ranks: Whether the stage can use all GPUs at once.
    """

    name: str
    tool: str
    data: tuple[str, ...]
    records: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    config: str = ""
    trials: int = 1
    saves: int = 0
    standard: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, int] = field(default_factory=dict)
    passes: Mapping[str, int | str] = field(default_factory=dict)
    vectors: int = 0
    ranks: bool = False

    @property
    def changed(self) -> dict[str, int]:
        """The settings that differ from the protocol's own."""
        usual = {"image_px": TRANSFER_PX, **self.standard} if not self.config else self.standard
        return {key: value for key, value in self.settings.items() if usual.get(key) != value}

    @property
    def image_px(self) -> int:
        """The side of the network's input in pixels."""
        return self.settings.get("image_px", self.standard.get("image_px", TRANSFER_PX))

    def takes(self, setting: str) -> bool:
        """Whether the names of the records have a place for the setting."""
        return all(f"{{{setting}}}" in name for name in self.records)

    def protocols(self, depth: int) -> tuple[str, ...]:
        """The protocols of the stage's records for a ResNet of this depth."""
        parts = {key: SETTINGS[key].format(self.changed[key]) if key in self.changed else "" for key in SETTINGS}
        return tuple(name.format(depth=depth, **parts) for name in self.records)

    def images(self, counts: Mapping[str, int]) -> int:
        """How many images go through the network. counts: the number of images of each split."""
        epochs = self.settings.get("epochs", self.standard.get("epochs", 1))
        return sum(counts.get(split, 0) * (epochs if n == "epochs" else int(n)) for split, n in self.passes.items())


@dataclass(frozen=True)
class Suite:
    """Stages in the order in which they run.

    Attributes:
        name: The stem of the suite's file, e.g. `table4`.
        about: A description for the user.
        stages: The stages.
    """

    name: str
    about: str
    stages: tuple[Stage, ...]


def load_suite(name: str, settings: Sequence[str] = ()) -> Suite:
    """Read a suite.

    Args:
        name: `table4`, `quick`, or a YAML file. `base:` in a file names the suite whose stages it changes.
        settings: `KEY=VALUE` for every stage that has such a setting, `STAGE.KEY=VALUE` for one stage.

    Returns:
        The suite with its settings.

    Raises:
        UserError: Names the file, the stage, the key and what was expected.
    """
    content, path = _read(name)
    stages = {stage: _stage(path, stage, row) for stage, row in content["stages"].items() if row is not None}
    own = {name: stage.settings for name, stage in stages.items()}
    for key, value in _mapping(path, content).items():
        stages = _set(stages, key, value, str(path))
    stages = {name: replace(stage, settings={**stage.settings, **own[name]}) for name, stage in stages.items()}
    for key, value in map(_pair, settings):
        stages = _set(stages, key, value, "--set")
    if not stages:
        raise UserError(f"{path}: no stages")
    return Suite(path.stem, str(content.get("about", "")), tuple(stages.values()))


def only(suite: Suite, names: Sequence[str]) -> Suite:
    """The suite with the stages of these names alone; all when none is named. Raises UserError for an unknown name."""
    known = {stage.name: stage for stage in suite.stages}
    for name in names:
        if name not in known:
            raise UserError(f"--stages {name}: {suite.name} has {', '.join(known)}")
    return replace(suite, stages=tuple(stage for stage in suite.stages if stage.name in names or not names))


def _read(name: str) -> tuple[dict, Path]:
    """The content of a suite merged with that of its base, and the suite's file."""
    path = FOLDER / f"{name}.yaml" if re.fullmatch(r"\w+", name) else Path(name)
    try:
        content = read_yaml(path, "suite")
    except UserError as error:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise UserError(f"--suite {name}: {error}; choose {known}, or a YAML file") from error
    known = ("base", "about", "settings", "stages")
    if not isinstance(content, dict) or not isinstance(content.get("stages", {}), dict):
        raise UserError(f"{path}: expected a mapping with {', '.join(known)}")
    if unknown := [key for key in content if key not in known]:
        raise UserError(f"{path}: unknown key {unknown[0]!r}{did_you_mean(str(unknown[0]), known)}")
    stages = content.get("stages", {})
    if "base" in content:
        base, _ = _read(str(content["base"]))
        merged = {n: _merged(row, stages.get(n, {})) for n, row in base["stages"].items()}
        stages = merged | {n: row for n, row in stages.items() if n not in merged}
        content = base | content
    return content | {"stages": stages}, path


def _mapping(path: Path, content: dict) -> Mapping:
    settings = content.get("settings", {})
    if not isinstance(settings, Mapping):
        raise UserError(f"{path}: settings: expected keys and values, found {settings!r}")
    return settings


def _merged(row: dict | None, change: dict | None) -> dict | None:
    return None if row is None or change is None else {**row, **change}


def _stage(path: Path, name: str, row: object) -> Stage:
    where = f"{path}: stages.{name}"
    if not isinstance(row, dict) or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", str(name)):
        raise UserError(f"{where}: expected a name of small letters, digits and dashes, and keys below it")
    if "name" in row:
        raise UserError(f"{where}: unknown key 'name'; the key of the stage is its name")
    stage = build(Stage, {"name": name, **row}, where)
    for key in ("tool", "data", "records"):
        if not getattr(stage, key):
            raise UserError(f"{where}: {key} is missing")
    if unknown := [item for item in stage.data if item not in KINDS]:
        raise UserError(f"{where}.data: {unknown[0]!r} is not a data set; choose {', '.join(KINDS)}")
    for text in stage.records:
        if unknown := set(re.findall(r"\{(.*?)\}", text)) - {*SETTINGS, "depth"}:
            raise UserError(f"{where}.records: {text!r}: {unknown.pop()} is none of {', '.join(SETTINGS)}, depth")
    settings, stage = stage.settings, replace(stage, settings={})
    for key, value in settings.items():
        stage = _set({name: stage}, f"{name}.{key}", value, str(path))[name]
    return stage


def _set(stages: dict[str, Stage], key: str, value: object, where: str) -> dict[str, Stage]:
    """The stages with one setting changed: of the stage in `STAGE.KEY`, or of all that have it. Raises UserError."""
    stage, _, setting = str(key).rpartition(".")
    if setting not in SETTINGS:
        raise UserError(f"{where}: unknown setting {key!r}; choose {', '.join(SETTINGS)}, or STAGE.KEY")
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: {key}: expected a whole number above 0, found {value!r}")
    if stage and stage not in stages:
        raise UserError(f"{where}: {key}: no stage {stage!r}; there are {', '.join(stages)}")
    if stage and not stages[stage].takes(setting):
        raise UserError(f"{where}: {key}: {stage} has no {setting} (no {{{setting}}} in the names of its records)")
    chosen = [stage] if stage else [name for name, candidate in stages.items() if candidate.takes(setting)]
    changed = {n: replace(stages[n], settings={**stages[n].settings, setting: value}) for n in chosen}
    return stages | changed


def _pair(text: str) -> tuple[str, object]:
    key, mark, value = text.partition("=")
    if not mark or not value.isdigit():
        raise UserError(f"--set {text}: expected KEY=NUMBER, KEY one of {', '.join(SETTINGS)}, or STAGE.KEY=NUMBER")
    return key, int(value)
