"""Suites as data: which stages there are, what each runs, needs and writes. YAML files; the keys are Stage's fields."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import yaml

from adco.data.datasets.locate import KINDS
from adco.utils.errors import UserError

FOLDER = Path(__file__).parent
SETTINGS = {"image_px": "@{}px", "epochs": "-{}ep", "iterations": "-{}it"}  # how each changes a protocol's name
TRANSFER_PX = 224


@dataclass(frozen=True)
class Stage:
    """One stage of a suite: a command line of ours, and the records that it leaves.

    tool: a script of this project, from its root; arguments: its own, protocols among them
    data: the data sets it needs (adco/data/datasets/locate.py); the first is the tool's --data
    records: the protocols it writes, by name; {image_px}, {epochs}, {iterations} become "" or what a setting adds to
        the name, {depth} the ResNet's; a setting without its place here is refused
    config: of a detector; trials: seeds of it; saves: detectors that stay on the disk
    standard: the protocol's settings; settings: what is not the protocol's: image_px, epochs, iterations
    passes: split -> how often its images go through the network (a number, or `epochs`); vectors: features kept of
        each, in units of the network's width; ranks: whether it can use every GPU at once
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
        """The settings that differ from the protocol's."""
        usual = {"image_px": TRANSFER_PX, **self.standard} if not self.config else self.standard
        return {key: value for key, value in self.settings.items() if usual.get(key) != value}

    @property
    def image_px(self) -> int:
        return self.settings.get("image_px", self.standard.get("image_px", TRANSFER_PX))

    def takes(self, setting: str) -> bool:
        """Whether a setting has a place in the names of its records."""
        return all(f"{{{setting}}}" in name for name in self.records)

    def protocols(self, depth: int) -> tuple[str, ...]:
        """The names that its records will carry."""
        words = {key: SETTINGS[key].format(self.changed[key]) if key in self.changed else "" for key in SETTINGS}
        return tuple(name.format(depth=depth, **words) for name in self.records)

    def images(self, counts: Mapping[str, int]) -> int:
        """How many images go through the network, of data with so many images a split."""
        epochs = self.settings.get("epochs", self.standard.get("epochs", 1))
        return sum(counts.get(split, 0) * (epochs if n == "epochs" else n) for split, n in self.passes.items())


@dataclass(frozen=True)
class Suite:
    """Stages in their order. name: `table4`, or the file's stem."""

    name: str
    about: str
    stages: tuple[Stage, ...]


def load_suite(name: str, settings: Sequence[str] = ()) -> Suite:
    """A suite by name (`table4`, `quick`) or YAML file. `base:` in a file names the suite whose stages it changes.

    settings: `KEY=VALUE` for every stage that has such a setting, `STAGE.KEY=VALUE` for one
    Raises UserError that names the file, the stage, the key and what was expected.
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
    """The suite's stages by name. Raises UserError for one that it does not have."""
    known = {stage.name: stage for stage in suite.stages}
    for name in names:
        if name not in known:
            raise UserError(f"--stages {name}: {suite.name} has {', '.join(known)}")
    return replace(suite, stages=tuple(stage for stage in suite.stages if stage.name in names or not names))


def _read(name: str) -> tuple[dict, Path]:
    """A suite's content with its base's, and its file."""
    path = FOLDER / f"{name}.yaml" if re.fullmatch(r"\w+", name) else Path(name)
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"--suite {name}: not readable as a suite ({reason}); choose {known}, or a YAML file"
        ) from error
    known = ("base", "about", "settings", "stages")
    if not isinstance(content, dict) or not isinstance(content.get("stages", {}), dict):
        raise UserError(f"{path}: expected a mapping with {', '.join(known)}")
    _known(f"{path}", content, known)
    stages = content.get("stages", {})
    if "base" in content:
        base, _ = _read(str(content["base"]))
        merged = {n: _merged(row, stages.get(n, {})) for n, row in base["stages"].items()}
        stages = merged | {n: row for n, row in stages.items() if n not in merged}
        content = base | content
    return content | {"stages": stages}, path


def _mapping(path: Path, content: dict) -> Mapping:
    found = content.get("settings", {})
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: settings: expected keys and values, found {found!r}")
    return found


def _merged(row: dict | None, change: dict | None) -> dict | None:
    return None if row is None or change is None else {**row, **change}


def _stage(path: Path, name: str, row: object) -> Stage:
    where = f"{path}: stages.{name}"
    if not isinstance(row, dict) or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", str(name)):
        raise UserError(f"{where}: expected a name of small letters, digits and dashes, and keys below it")
    _known(where, row, [f.name for f in fields(Stage) if f.name != "name"])
    for key in ("tool", "data", "records"):
        if not row.get(key):
            raise UserError(f"{where}: {key} is missing")
    for key in ("data", "records", "arguments"):
        if not isinstance(row.get(key, []), list) or not all(isinstance(item, str) for item in row.get(key, [])):
            raise UserError(f"{where}.{key}: expected a list of texts, found {row[key]!r}")
    if strange := [item for item in row["data"] if item not in KINDS]:
        raise UserError(f"{where}.data: {strange[0]!r} is not a data set; choose {', '.join(KINDS)}")
    for text in row["records"]:
        if strange := set(re.findall(r"\{(.*?)\}", text)) - {*SETTINGS, "depth"}:
            raise UserError(f"{where}.records: {text!r}: {strange.pop()} is none of {', '.join(SETTINGS)}, depth")
    for key in ("settings", "standard", "passes"):
        if not isinstance(row.get(key, {}), dict):
            raise UserError(f"{where}.{key}: expected keys and values, found {row[key]!r}")
    chosen = row.get("settings", {})
    made = Stage(**({"name": name, **row, "settings": {}} | {k: tuple(row.get(k, ())) for k in _LISTS}))
    for key, value in chosen.items():
        made = _set({name: made}, f"{name}.{key}", value, str(path))[name]
    return made


_LISTS = ("data", "records", "arguments")


def _set(stages: dict[str, Stage], key: str, value: object, where: str) -> dict[str, Stage]:
    """The stages with one setting: of the stage `STAGE.KEY` names, or of all that have it. Raises UserError."""
    stage, _, setting = str(key).rpartition(".")
    if setting not in SETTINGS:
        raise UserError(f"{where}: unknown setting {key!r}; choose {', '.join(SETTINGS)}, or STAGE.KEY")
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: {key}: expected a whole number above 0, found {value!r}")
    if stage and stage not in stages:
        raise UserError(f"{where}: {key}: no stage {stage!r}; there are {', '.join(stages)}")
    if stage and not stages[stage].takes(setting):
        raise UserError(f"{where}: {key}: {stage} has no {setting} (no {{{setting}}} in the names of its records)")
    chosen = [stage] if stage else [name for name, found in stages.items() if found.takes(setting)]
    changed = {n: replace(stages[n], settings={**stages[n].settings, setting: value}) for n in chosen}
    return stages | changed


def _pair(text: str) -> tuple[str, object]:
    key, mark, value = text.partition("=")
    if not mark or not value.isdigit():
        raise UserError(f"--set {text}: expected KEY=NUMBER, KEY one of {', '.join(SETTINGS)}, or STAGE.KEY=NUMBER")
    return key, int(value)


def _known(where: str, row: Mapping, known: Sequence[str]) -> None:
    for key in row:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise UserError(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]}?" if near else ""))
