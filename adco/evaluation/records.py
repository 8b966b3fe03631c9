"""Result records, schema 2: one JSON file for each measurement. Reports and MODEL_ZOO.md are made from these alone.

Writing: `Record(protocol, scores, checkpoint, data, settings, seconds).write(path)`. The typed parts may be given as
plain mappings: `scores={"top1": 12.3}` or `{"top1": Score(12.3, 11.0, 13.6)}`, `checkpoint=backbone.describe()`,
`data={"name": ..., "fingerprint": ..., "train_images": 5}` (integers become counts, all other values become details).

Reading: `load_record(path)`. It upgrades schema 1 and raises a UserError that names the file and the key for anything
else that does not fit. A Score is a float: `record.scores["top1"] > 50` and `f"{score:.2f}"` work. It also has
`score.low`, `score.high`, `score.std` and `score.trials`.

Reuse: `reuse_obstacles(record, sha256, protocol, fingerprint, code_version(protocol))` is empty when the measurement
does not have to be repeated. comparison.py compares records; published.py holds published numbers in the same terms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adco.evaluation.provenance import code_version, command_line, commit, hardware, versions
from adco.evaluation.score import Score
from adco.utils.errors import UserError
from adco.utils.files import write_text
from adco.utils.serialization import build, plain

if TYPE_CHECKING:
    Json = Any  # a value of a JSON file, whose type its reader knows
else:
    Json = object  # `serialization.build` takes it as it is

SCHEMA = 2
_SCHEMA_1_KEYS = {
    "protocol", "scores", "checkpoint", "data", "settings", "duration_seconds", "hardware", "versions", "commit",
    "command", "created", "schema",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """The evaluated checkpoint. An empty string or None means "not known".

    Attributes:
        name: Name of the file.
        sha256: Hash of the file; `random:ARCH:SEED` for random weights.
        arch: Architecture, e.g. `resnet50`.
        stem: First layers of the network, `imagenet` or `small`.
        source: The layout it was read as, or `random`.
        method: Pretraining method.
        recipe: Name of the pretraining recipe, or the hash of the resolved one.
        epochs: Epochs of pretraining.
        origin: For a converted file, the checkpoint it was converted from.
    """

    name: str = ""
    sha256: str = ""
    arch: str = ""
    stem: str | None = None
    source: str | None = None
    method: str | None = None
    recipe: str | None = None
    epochs: int | None = None
    origin: Checkpoint | None = None

    @property
    def pretrained(self) -> Checkpoint:
        """The checkpoint that pretraining wrote: the origin of a converted file, else this one."""
        return self.origin.pretrained if self.origin else self


@dataclass(frozen=True)
class Data:
    """The data that a checkpoint was evaluated on.

    Attributes:
        name: Name of the data set.
        fingerprint: Hash of the lists of images and labels.
        official: Whether it is the official release of that name; None if this was not checked.
        counts: Integers such as train_images, test_images, classes.
        details: All other facts.
    """

    name: str = ""
    fingerprint: str = ""
    official: bool | None = None
    counts: dict[str, int] = field(default_factory=dict)
    details: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """The npz file beside the record with the predictions for every image (adco/evaluation/predictions.py).

    Attributes:
        file: Name of the file.
        sha256: Hash of the file.
        kind: `hits`, `ranks` or `boxes`.
    """

    file: str
    sha256: str
    kind: str


@dataclass(frozen=True)
class Record:
    """One measurement: protocol, scores, checkpoint, data and provenance.

    Attributes:
        protocol: Benchmark and protocol, e.g. `voc07-svm/pcl`, `knn/k20-t0.07`, `detection/smoke_voc_R_18_C4`.
        scores: Name -> score. The constructor also takes plain numbers.
        checkpoint: The evaluated checkpoint. The constructor also takes a mapping, see `as_checkpoint`.
        data: The data. The constructor also takes a mapping, see `as_data`.
        settings: Every choice that can change the score (seed, k, C, image size, norm, iterations ...).
        duration_seconds: How long the measurement took.
        hardware, versions, commit, command, created: Provenance, filled in by default.
        code: `provenance.code_version` of the protocol; "" if it was not recorded (schema 1).
        predictions: The file of predictions beside the record, if there is one.
        schema: Version of the format.
        folder: Folder of the file that the record was read from, None for a new record.
    """

    protocol: str
    scores: dict[str, Score]
    checkpoint: Checkpoint
    data: Data
    settings: dict[str, Json] = field(default_factory=dict)
    duration_seconds: float = 0.0
    hardware: str = field(default_factory=hardware)
    versions: dict[str, str] = field(default_factory=versions)
    commit: str = field(default_factory=commit)
    code: str | None = None
    command: str = field(default_factory=command_line)
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    predictions: Predictions | None = None
    schema: int = SCHEMA
    folder: Path | None = field(default=None, init=False, compare=False, repr=False)

    if TYPE_CHECKING:  # what the constructor takes; `__post_init__` converts plain mappings

        def __init__(
            self,
            protocol: str,
            scores: Mapping[str, float],
            checkpoint: Checkpoint | Mapping[str, object],
            data: Data | Mapping[str, object],
            settings: dict[str, Json] = ...,
            duration_seconds: float = ...,
            **provenance: Any,
        ) -> None: ...

    def __post_init__(self) -> None:
        scores = {name: s if isinstance(s, Score) else Score(float(s)) for name, s in self.scores.items()}
        typed = {"scores": scores, "checkpoint": as_checkpoint(self.checkpoint), "data": as_data(self.data)}
        if self.code is None:
            typed["code"] = code_version(self.protocol)
        for name, value in typed.items():
            object.__setattr__(self, name, value)

    def write(self, path: Path) -> Path:
        """Write the record as JSON, atomically.

        Returns:
            The path.
        """
        write_text(path, json.dumps(plain(self), indent=2, sort_keys=True) + "\n")
        return Path(path)


def load_record(path: Path) -> Record:
    """Read a record of this schema or an older one.

    Raises:
        UserError: The file is not a record; the message names the file and the key.
    """
    try:
        content = json.loads(Path(path).read_text())
        schema = content["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a result record ({type(error).__name__}: {error}); expected JSON") from error
    record = record_of(content, str(path)) if schema == SCHEMA else _older(content, schema, str(path))
    object.__setattr__(record, "folder", Path(path).parent)
    return record


def record_of(content: Mapping[str, Json], where: str) -> Record:
    """A record of schema 2 from plain containers.

    Raises:
        UserError: The content does not fit; the message begins with `where`.
    """
    return build(Record, {"code": "", **content}, where)


def as_checkpoint(facts: Mapping[str, Json] | Checkpoint) -> Checkpoint:
    """A Checkpoint from a mapping of its attributes, e.g. `Backbone.describe()`.

    Raises:
        UserError: A key is unknown or a value has the wrong type.
    """
    if isinstance(facts, Checkpoint):
        return facts
    origin = facts.get("origin")
    return build(Checkpoint, {**facts, "origin": as_checkpoint(origin) if origin else None}, "checkpoint")


def as_data(facts: Mapping[str, Json] | Data) -> Data:
    """Data from a flat mapping: name, fingerprint, official, integers (they become counts) and the rest (details).

    Raises:
        UserError: A value has the wrong type.
    """
    if isinstance(facts, Data):
        return facts
    own = {key: facts[key] for key in ("name", "fingerprint", "official") if key in facts}
    rest = {key: value for key, value in facts.items() if key not in own}
    counts = {key: value for key, value in rest.items() if type(value) is int}
    details = {key: value for key, value in rest.items() if key not in counts}
    return build(Data, own | {"counts": counts, "details": details}, "data")


def reuse_obstacles(record: Record, sha256: str, protocol: str, fingerprint: str, code: str) -> list[str]:
    """Reasons why a record cannot replace a new measurement; empty if it can.

    Args:
        record: The record.
        sha256: Hash of the checkpoint as it was pretrained: that of a converted file's origin, not of the conversion.
        protocol: Name of the protocol.
        fingerprint: Fingerprint of the data.
        code: `provenance.code_version` of the protocol.
    """
    pairs = {
        "checkpoint": (record.checkpoint.pretrained.sha256, sha256),
        "protocol": (record.protocol, protocol),
        "data": (record.data.fingerprint, fingerprint),
        "code": (record.code, code),
    }
    others = {what: pair for what, pair in pairs.items() if pair[0] != pair[1]}
    unknown = [what for what, (_, now) in pairs.items() if what not in others and now in ("", "unknown")]
    reasons = [f"another {what}: {then[:40]} then, {now[:40]} now" for what, (then, now) in others.items()]
    return reasons + [f"the {what} is not known" for what in unknown]


def _older(content: Mapping[str, Json], schema: object, where: str) -> Record:
    if schema == 1:
        return record_of(_from_schema_1(content, where), where)
    if type(schema) is int and schema > SCHEMA:
        raise UserError(f"{where}: record schema {schema} is newer than {SCHEMA}; update this project")
    raise UserError(f"{where}: schema: expected 1 to {SCHEMA}, found {schema!r}")


def _from_schema_1(content: Mapping[str, Json], where: str) -> dict[str, Json]:
    """The plain form of schema 2: intervals, deviations and trials move from `settings` and `NAME_std` to the scores.

    Raises:
        UserError: A key is not of schema 1 or a part has another type; the message begins with `where`.
    """
    if unexpected := sorted(set(content) - _SCHEMA_1_KEYS):
        raise UserError(f"{where}: unknown key {unexpected[0]!r} in a record of schema 1")
    for key in ("scores", "checkpoint", "data", "settings"):
        if not isinstance(content.get(key, {} if key == "settings" else None), Mapping):
            raise UserError(f"{where}: {key}: expected keys and values, found {content.get(key)!r}")
    settings = dict(content.get("settings", {}))
    intervals, over_draws = settings.pop("interval95", {}), "interval_of" in settings
    settings.pop("interval_of", None)
    trials = [trial["scores"] for trial in settings.get("each_trial", ())]
    scores = {}
    for name, value in content["scores"].items():
        if name.removesuffix("_std") != name and name.removesuffix("_std") in content["scores"]:
            continue
        if trials or over_draws:  # low-shot: `k1/trials` has the draws of `mAP/k1`
            values = [trial[name] for trial in trials if name in trial] or settings.get(f"{name[4:]}/trials", [value])
            scores[name] = plain(Score.over_trials(values))
        elif name in intervals:
            scores[name] = plain(Score.over_images(value, intervals[name]))
        else:
            scores[name] = {"value": value}
    checkpoint = dict(content["checkpoint"])
    if content["protocol"].startswith("pretrain/"):
        checkpoint |= {"method": content["protocol"].partition("/")[2], "epochs": settings.get("epochs")}
    parts = {"checkpoint": plain(as_checkpoint(checkpoint)), "data": plain(as_data(content["data"]))}
    return dict(content) | parts | {"scores": scores, "settings": settings, "schema": SCHEMA}
