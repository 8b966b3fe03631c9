"""Result records, schema 2: one JSON file per measured row. Reports and MODEL_ZOO.md are made from these alone.

Writing: `Record(protocol, scores, checkpoint, data, settings, seconds).write(path)`. Plain mappings are taken for the
typed parts: `scores={"top1": 12.3}` or `{"top1": Score(12.3, 11.0, 13.6)}`, `checkpoint=backbone.describe()`, `data=
{"name": ..., "fingerprint": ..., "train_images": 5}` (whole numbers become counts, what else there is becomes details).

Reading: `load_record(path)`; schema 1 is upgraded, anything else that does not fit is a
UserError that names the file and the key. A Score is a float: `record.scores["top1"] > 50` and `f"{score:.2f}"` work,
and `score.low`, `score.high`, `score.std` and `score.trials` are beside it.

Reuse: `reuse_obstacles(record, sha256, protocol, fingerprint, code_version(protocol))` is empty when the work need not
be done again. Comparing: comparison.py. What others published: published.py, in the same terms.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from scipy.special import stdtrit

from adco.evaluation.provenance import code_version, command_line, commit, hardware, versions
from adco.utils.errors import UserError
from adco.utils.files import write_text
from adco.utils.serialization import build, plain

SCHEMA = 2
_SCHEMA_1_KEYS = {
    "protocol", "scores", "checkpoint", "data", "settings", "duration_seconds", "hardware", "versions", "commit",
    "command", "created", "schema",
}  # fmt: skip


@dataclass(frozen=True)
class Score(float):
    """A measured value, in percent where papers give percent, with its 95% interval. It computes as its value.

    over: what the interval is over: `images` (bootstrap of the test set) or `trials` (Student's t of their mean)
    std: sample standard deviation over `trials` seeds or drawn samples, of which `value` is the mean
    """

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None
    trials: int = 1
    over: str | None = None

    def __new__(cls, value: float, *_: object, **__: object):
        return super().__new__(cls, value)

    __hash__ = float.__hash__

    def __eq__(self, other: object) -> bool:
        return asdict(self) == asdict(other) if isinstance(other, Score) else float(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    @classmethod
    def over_images(cls, value: float, interval: tuple[float, float]) -> Score:
        """A value with the bootstrap interval of its test set."""
        low, high = map(float, interval)
        return cls(float(value), low, high, over="images") if math.isfinite(low + high) else cls(float(value))

    @classmethod
    def over_trials(cls, values: Sequence[float]) -> Score:
        """Mean, sample standard deviation and Student's 95% interval of the mean; of one trial the value alone."""
        values, count = [float(value) for value in values], len(values)
        mean = statistics.fmean(values)
        if count < 2:
            return cls(mean)
        std = statistics.stdev(values)
        reach = float(stdtrit(count - 1, 0.975)) * std / math.sqrt(count)
        return cls(mean, mean - reach, mean + reach, std, count, "trials")


@dataclass(frozen=True)
class Checkpoint:
    """What was judged. Empty or None is "not known".

    sha256: of the file; `random:ARCH:SEED` for random weights. source: the layout it was read as, or `random`.
    method, recipe (a name, or the hash of the resolved one), epochs: how it was pretrained.
    origin: of a converted file, the checkpoint it was converted from.
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
    """What it was judged on. official: whether it is the release that its name says, None where nobody looked.

    fingerprint: hash of the lists of images and labels; counts: e.g. train_images, test_images, classes
    """

    name: str = ""
    fingerprint: str = ""
    official: bool | None = None
    counts: dict[str, int] = field(default_factory=dict)
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """The npz file beside the record with what was predicted for every image (adco/evaluation/predictions.py).

    file: its name; sha256: its hash; kind: `hits`, `ranks` or `boxes`
    """

    file: str
    sha256: str
    kind: str


@dataclass(frozen=True)
class Record:
    """What was measured, under which protocol, on what, by what.

    protocol: the benchmark and protocol by name, e.g. `voc07-svm/pcl`, `knn/k20-t0.07`, `detection/smoke_voc_R_18_C4`
    settings: every choice that can move the score (seed, k, C, image size, norm, iterations ...)
    code: `provenance.code_version` of the protocol, "" where it was not recorded (schema 1)
    """

    protocol: str
    scores: dict[str, Score]
    checkpoint: Checkpoint
    data: Data
    settings: dict[str, object] = field(default_factory=dict)
    duration_seconds: float = 0.0
    hardware: str = field(default_factory=hardware)
    versions: dict[str, str] = field(default_factory=versions)
    commit: str = field(default_factory=commit)
    code: str | None = None
    command: str = field(default_factory=command_line)
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    predictions: Predictions | None = None
    schema: int = SCHEMA
    folder: Path | None = field(default=None, init=False, compare=False, repr=False)  # it was read there

    def __post_init__(self) -> None:
        scores = {name: s if isinstance(s, Score) else Score(float(s)) for name, s in self.scores.items()}
        typed = {"scores": scores, "checkpoint": as_checkpoint(self.checkpoint), "data": as_data(self.data)}
        if self.code is None:
            typed["code"] = code_version(self.protocol)
        for name, value in typed.items():
            object.__setattr__(self, name, value)

    def write(self, path: Path) -> Path:
        """Write the record as JSON, atomically, and return the path."""
        write_text(path, json.dumps(plain(self), indent=2, sort_keys=True) + "\n")
        return Path(path)


def load_record(path: Path) -> Record:
    """Read a record of this schema or an older one. Raises UserError that names the file and the key."""
    try:
        content = json.loads(Path(path).read_text())
        schema = content["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a result record ({type(error).__name__}: {error}); expected JSON") from error
    record = record_of(content, str(path)) if schema == SCHEMA else _older(content, schema, str(path))
    object.__setattr__(record, "folder", Path(path).parent)
    return record


def record_of(content: Mapping[str, object], where: str) -> Record:
    """A record of schema 2 from plain containers. Raises UserError that begins with `where`."""
    return build(Record, {"code": "", **content}, where)


def as_checkpoint(facts: Mapping[str, object] | Checkpoint) -> Checkpoint:
    """A Checkpoint from what writers say of it, e.g. `Backbone.describe()`. Raises UserError for an unknown key."""
    if isinstance(facts, Checkpoint):
        return facts
    origin = facts.get("origin")
    return build(Checkpoint, {**facts, "origin": as_checkpoint(origin) if origin else None}, "checkpoint")


def as_data(facts: Mapping[str, object] | Data) -> Data:
    """Data from what writers say of it: name, fingerprint, official, whole numbers (counts), and the rest (details)."""
    if isinstance(facts, Data):
        return facts
    own = {key: facts[key] for key in ("name", "fingerprint", "official") if key in facts}
    rest = {key: value for key, value in facts.items() if key not in own}
    counts = {key: value for key, value in rest.items() if type(value) is int}
    details = {key: value for key, value in rest.items() if key not in counts}
    return build(Data, own | {"counts": counts, "details": details}, "data")


def reuse_obstacles(record: Record, sha256: str, protocol: str, fingerprint: str, code: str) -> list[str]:
    """Why a record does not stand for this work, in words; empty when it does.

    sha256: of the checkpoint as it was pretrained: a converted file's origin counts, not the conversion
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


def _older(content: Mapping[str, object], schema: object, where: str) -> Record:
    if schema == 1:
        return record_of(_from_schema_1(content, where), where)
    if type(schema) is int and schema > SCHEMA:
        raise UserError(f"{where}: record schema {schema} is newer than {SCHEMA}; update this project")
    raise UserError(f"{where}: schema: expected 1 to {SCHEMA}, found {schema!r}")


def _from_schema_1(content: Mapping[str, object], where: str) -> dict[str, object]:
    """The plain form of schema 2: intervals, deviations and trials go from `settings` and `NAME_std` into the scores.

    Raises UserError that begins with `where` for a key that schema 1 did not have or a part of another type.
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
