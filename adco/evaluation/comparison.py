"""Which numbers may stand beside one another, why two may not, and how sure a difference is. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from adco.evaluation.average_precision import resamples
from adco.evaluation.predictions import Metric, load_predictions
from adco.evaluation.published import Published
from adco.evaluation.records import Record, Score

METRICS = {
    "mAP": "the mean over classes of the AP over images",
    "mAP11": "the mean over classes of the 11-point AP over images",
    "sample_AP": "the mean over images of the AP over classes",
    "top1": "the share of images whose first class is right",
    "AP": "the mean over classes and IoU .5 to .95",
    "AP50": "the mean over classes at IoU .5",
    "AP75": "the mean over classes at IoU .75",
    "APs": "the AP of boxes below 32 x 32 pixels",
}
_DETECTOR = re.compile(r"detection/(?P<data>\w+?)_R_(?P<depth>\d+)_(?P<head>C4|FPN)(?:_(?P<schedule>\w+))?$")


@dataclass(frozen=True, order=True)
class Column:
    """What all numbers of one column share. Published ones have columns of their own: their data has no fingerprint."""

    protocol: str
    data: str
    official: bool
    fingerprint: str

    @property
    def title(self) -> str:
        """`voc07-svm/pcl on VOC2007`, `... on VOC2007 (subset 1a2b3c4d)`."""
        return f"{self.protocol} on {self.data}" + ("" if self.official else f" (subset {self.fingerprint[:8]})")


@dataclass(frozen=True)
class Difference:
    """b - a in the metric's unit, its 95% interval, and the two-sided p that there is none."""

    metric: str
    difference: float
    low: float
    high: float
    p: float
    how: str

    @property
    def significant(self) -> bool:
        return self.p < 0.05


@dataclass(frozen=True)
class _Facts:
    """A record or a published row in the same terms; None is "not known"."""

    protocol: str
    px: str
    data: str
    official: bool
    fingerprint: str
    metrics: tuple[str, ...]
    arch: str | None
    epochs: int | None
    detector: str | None
    schedule: str | None
    norm: object
    changed: tuple[str, ...]
    cautions: tuple[str, ...]


def column_key(row: Record | Published) -> Column:
    """Two rows may stand in one column only if this is equal. The image size is part of a protocol's name."""
    facts = _facts(row)
    protocol = facts.protocol + (f"@{facts.px}" if facts.px else "")
    return Column(protocol, facts.data, facts.official, facts.fingerprint)


def incompatibilities(a: Record | Published, b: Record | Published) -> list[str]:
    """The reasons, in words, why a difference between the two numbers says nothing of the two models; [] if none."""
    one, two = _facts(a), _facts(b)
    reasons = []
    if one.protocol != two.protocol:
        reasons.append(f"protocol: {one.protocol} against {two.protocol}")
    elif one.protocol.startswith("own/"):
        reasons.append(f"protocol: {one.protocol} is not ours; whether both numbers came about alike is not known")
    if one.px != two.px:
        reasons.append(f"image size: {one.px or 'the protocol’s own'} against {two.px or 'the protocol’s own'}")
    reasons += _about_data(one, two)
    if not set(one.metrics) & set(two.metrics):
        reasons.append("metric: " + " against ".join(_metric_in_words(facts.metrics) for facts in (one, two)))
    for name in ("detector", "schedule", "norm", "arch", "epochs"):
        left, right = getattr(one, name), getattr(two, name)
        if None not in (left, right) and left != right:
            what = {"arch": "architecture", "epochs": "epochs of pretraining"}.get(name, name)
            reasons.append(f"{what}: {left} against {right}")
    reasons += [f"changed from the protocol: {change}" for change in dict.fromkeys((*one.changed, *two.changed))]
    return reasons + [f"caution: {caution}" for caution in dict.fromkeys((*one.cautions, *two.cautions))]


def why_no_bootstrap(a: Record, b: Record, metric: str) -> str:
    """Why the difference of two records cannot be tested image by image, "" when it can."""
    for record, which in ((a, "first"), (b, "second")):
        if metric not in record.scores:
            return f"the {which} record has no {metric}"
        if record.predictions is None or record.folder is None:
            return f"the {which} record has no predictions beside it (it was written before they were kept)"
    if column_key(a) != column_key(b):
        return f"they are not of one column: {column_key(a).title} and {column_key(b).title}"
    return ""


def paired_bootstrap(a: Record, b: Record, metric: str, draws: int = 2000, seed: int = 0) -> Difference:
    """b - a over test sets drawn from the images that both saw, the same ones for both (Efron's percentile interval).

    p: twice the smaller share of draws on either side of zero, at least 2 / (draws + 1).
    Raises ValueError where `why_no_bootstrap` has a reason or the images differ; UserError for damaged predictions.
    """
    if reason := why_no_bootstrap(a, b, metric):
        raise ValueError(f"not possible, because {reason}")
    (digest, ours, images), (other, theirs, _) = load_predictions(a), load_predictions(b)
    if digest != other:
        raise ValueError("not possible, because they were tested on other images, or in another order")
    if metric not in ours or metric not in theirs:
        raise ValueError(f"not possible, because {metric} cannot be computed from the kept predictions")
    found = bootstrap_difference(ours[metric], theirs[metric], images, draws, seed)
    return Difference(metric, *found, f"bootstrap, paired over {images:,} images")


def bootstrap_difference(
    ours: Metric, theirs: Metric, images: int, draws: int, seed: int
) -> tuple[float, float, float, float]:
    """theirs - ours, its 95% interval and p: the core of `paired_bootstrap`, on metrics of the same `images`."""
    whole = np.ones((1, images))
    found = float((theirs(whole) - ours(whole))[0])
    drawn = np.concatenate([theirs(weights) - ours(weights) for weights in resamples(images, draws, seed)])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1
    return found, float(low), float(high), min(1.0, 2 * float(tail) / (len(drawn) + 1))


def over_trials(a: Score, b: Score, metric: str) -> Difference:
    """b - a of two means over trials: Welch's t. Raises ValueError when either has fewer than two trials."""
    if min(a.trials, b.trials) < 2 or None in (a.std, b.std):
        raise ValueError("not possible, because a deviation needs two trials of each")
    parts = [score.std**2 / score.trials for score in (a, b)]
    found, error = float(b) - float(a), math.sqrt(sum(parts))
    if error == 0:
        return Difference(metric, found, found, found, 0.0 if found else 1.0, "trials without any spread")
    freedom = sum(parts) ** 2 / sum(part**2 / (score.trials - 1) for part, score in zip(parts, (a, b), strict=True))
    reach = float(stdtrit(freedom, 0.975)) * error
    p = 2 * float(stdtr(freedom, -abs(found) / error))
    return Difference(metric, found, found - reach, found + reach, p, f"Welch's t, {a.trials} + {b.trials} trials")


def significance(a: Record, b: Record, metric: str, draws: int = 2000, seed: int = 0) -> Difference | str:
    """b - a by trials where both have some, else image by image; a text beginning "not possible" where neither can."""
    if column_key(a) != column_key(b):
        return f"not possible, because {why_no_bootstrap(a, b, metric)}"
    try:
        if metric in a.scores and metric in b.scores and min(a.scores[metric].trials, b.scores[metric].trials) > 1:
            return over_trials(a.scores[metric], b.scores[metric], metric)
        return paired_bootstrap(a, b, metric, draws, seed)
    except ValueError as reason:
        return str(reason)


def _about_data(one: _Facts, two: _Facts) -> list[str]:
    if one.data != two.data:
        return [f"data: {one.data} against {two.data}"]
    if one.official != two.official:
        which = "second" if one.official else "first"
        return [f"data: the {which} is not the official {one.data}"]
    if one.fingerprint and two.fingerprint and one.fingerprint != two.fingerprint:
        return [f"data: another selection or version of {one.data} (their fingerprints differ)"]
    return []


def _metric_in_words(metrics: Sequence[str]) -> str:
    name = next((name for name in METRICS if name in metrics), metrics[0] if metrics else "none")
    return f"{name} ({METRICS[name]})" if name in METRICS else name


def _facts(row: Record | Published) -> _Facts:
    return _of_published(row) if isinstance(row, Published) else _of_record(row)


def _of_published(row: Published) -> _Facts:
    cautions = tuple(f"{row.source}: {text}" for text in (row.caution, row.ambiguous) if text)
    base, detector, schedule = _detector(row.protocol)
    return _Facts(
        row.protocol, "", row.data, True, "", (row.metric,), "resnet50", row.epochs, detector or row.detector,
        schedule or row.schedule, None, (), cautions,
    )  # fmt: skip


def _of_record(record: Record) -> _Facts:
    protocol, _, px = record.protocol.partition("@")
    _, detector, schedule = _detector(protocol)
    checkpoint, data = record.checkpoint.pretrained, record.data
    name = _PUBLIC_NAMES.get(data.name, data.name) if data.official else data.name
    return _Facts(
        protocol, px, name, bool(data.official), data.fingerprint, tuple(record.scores), checkpoint.arch or None,
        checkpoint.epochs, detector, schedule, record.settings.get("norm"),
        tuple(record.settings.get("overrides", ())), (),
    )  # fmt: skip


_PUBLIC_NAMES = {"voc_2007_test": "VOC07+12", "coco_2017_val": "COCO"}  # detectron2's names in the papers' words


def _detector(protocol: str) -> tuple[str, str | None, str | None]:
    """`detection/coco_R_50_C4_2x` -> (coco, R50-C4, 2x)."""
    found = _DETECTOR.match(protocol)
    return (found["data"], f"R{found['depth']}-{found['head']}", found["schedule"]) if found else ("", None, None)
