"""Which numbers are comparable, why two are not, and the significance of a difference. Pure functions."""

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
from adco.evaluation.records import Record
from adco.evaluation.score import Score

METRICS = {
    "mAP": "the mean over classes of the AP over images",
    "mAP11": "the mean over classes of the 11-point AP over images",
    "sample_AP": "the mean over images of the AP over classes",
    "top1": "the share of images whose first class is correct",
    "AP": "the mean over classes and IoU .5 to .95",
    "AP50": "the mean over classes at IoU .5",
    "AP75": "the mean over classes at IoU .75",
    "APs": "the AP of boxes below 32 x 32 pixels",
}
_DETECTOR = re.compile(r"detection/(?P<data>\w+?)_R_(?P<depth>\d+)_(?P<head>C4|FPN)(?:_(?P<schedule>\w+))?$")


@dataclass(frozen=True, order=True)
class Column:
    """What all numbers of one column share. Published numbers have separate columns: their data has no fingerprint.

    Attributes:
        protocol: Name of the protocol, with `@96px` if the image size is not the protocol's own.
        data: Name of the data set.
        official: Whether it is the official release.
        fingerprint: Fingerprint of the data, empty for published numbers.
    """

    protocol: str
    data: str
    official: bool
    fingerprint: str

    @property
    def title(self) -> str:
        """Text of the column: `voc07-svm/pcl on VOC2007`, `... on VOC2007 (subset 1a2b3c4d)`."""
        return f"{self.protocol} on {self.data}" + ("" if self.official else f" (subset {self.fingerprint[:8]})")


@dataclass(frozen=True)
class Difference:
    """A difference b - a with its test.

    Attributes:
        metric: Name of the metric.
        difference: b - a in the unit of the metric.
        low, high: Ends of its 95% interval.
        p: Two-sided p-value of the hypothesis that there is no difference.
        how: Name of the test and its sample size.
    """

    metric: str
    difference: float
    low: float
    high: float
    p: float
    how: str

    @property
    def significant(self) -> bool:
        """Whether p is below 0.05."""
        return self.p < 0.05


@dataclass(frozen=True)
class _Facts:
    """A record or a published number in the same terms; None is "not known"."""

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
    """The column of a number. Numbers of different columns are not comparable; the protocol has the image size."""
    facts = _facts(row)
    protocol = facts.protocol + (f"@{facts.px}" if facts.px else "")
    return Column(protocol, facts.data, facts.official, facts.fingerprint)


def incompatibilities(a: Record | Published, b: Record | Published) -> list[str]:
    """Reasons why two numbers are not comparable.

    Args:
        a, b: Records or published numbers.

    Returns:
        One sentence for each reason, such as another protocol, image size, data set, metric, detector, architecture or
        number of epochs. Cautions of published numbers begin with `caution`. Empty if the numbers are comparable.
    """
    one, two = _facts(a), _facts(b)
    reasons = []
    if one.protocol != two.protocol:
        reasons.append(f"protocol: {one.protocol} against {two.protocol}")
    elif one.protocol.startswith("own/"):
        reasons.append(f"protocol: {one.protocol} is not ours; whether both numbers were obtained alike is not known")
    if one.px != two.px:
        reasons.append(f"image size: {one.px or 'the protocol’s own'} against {two.px or 'the protocol’s own'}")
    reasons += _about_data(one, two)
    if not set(one.metrics) & set(two.metrics):
        reasons.append("metric: " + " against ".join(_describe_metric(facts.metrics) for facts in (one, two)))
    for name in ("detector", "schedule", "norm", "arch", "epochs"):
        left, right = getattr(one, name), getattr(two, name)
        if None not in (left, right) and left != right:
            what = {"arch": "architecture", "epochs": "epochs of pretraining"}.get(name, name)
            reasons.append(f"{what}: {left} against {right}")
    reasons += [f"changed from the protocol: {change}" for change in dict.fromkeys((*one.changed, *two.changed))]
    return reasons + [f"caution: {caution}" for caution in dict.fromkeys((*one.cautions, *two.cautions))]


def why_no_bootstrap(a: Record, b: Record, metric: str) -> str:
    """Why the difference of two records' `metric` cannot be tested image by image; "" if it can."""
    for record, which in ((a, "first"), (b, "second")):
        if metric not in record.scores:
            return f"the {which} record has no {metric}"
        if record.predictions is None or record.folder is None:
            return f"the {which} record has no predictions beside it (it was written before they were kept)"
    if column_key(a) != column_key(b):
        return f"they are not of one column: {column_key(a).title} and {column_key(b).title}"
    return ""


def paired_bootstrap(a: Record, b: Record, metric: str, draws: int = 2000, seed: int = 0) -> Difference:
    """The difference b - a with a bootstrap over the test images, in which both records have the same images.

    Args:
        a, b: Records whose predictions are kept beside them, of one column and the same test images.
        metric: Name of a score of both.
        draws: Number of resampled test sets.
        seed: Seed of the resampling.

    Returns:
        The difference with Efron's percentile interval. p is twice the smaller share of draws on either side of zero,
        at least 2 / (draws + 1).

    Raises:
        ValueError: `why_no_bootstrap` has a reason, or the test images differ; the message begins "not possible".
        UserError: The predictions are damaged.
    """
    if reason := why_no_bootstrap(a, b, metric):
        raise ValueError(f"not possible, because {reason}")
    (digest, ours, images), (other, theirs, _) = load_predictions(a), load_predictions(b)
    if digest != other:
        raise ValueError("not possible, because they were tested on other images, or in another order")
    if metric not in ours or metric not in theirs:
        raise ValueError(f"not possible, because {metric} cannot be computed from the kept predictions")
    test = bootstrap_difference(ours[metric], theirs[metric], images, draws, seed)
    return Difference(metric, *test, f"bootstrap, paired over {images:,} images")


def bootstrap_difference(
    ours: Metric, theirs: Metric, images: int, draws: int, seed: int
) -> tuple[float, float, float, float]:
    """The bootstrap of a difference of two metrics of the same images, see `paired_bootstrap`.

    Args:
        ours, theirs: Functions (B, images) counts of each image -> (B,) values.
        images: Number of test images.
        draws: Number of resampled test sets.
        seed: Seed of the resampling.

    Returns:
        theirs - ours on the whole test set, the ends of its 95% interval, and the two-sided p.
    """
    whole = np.ones((1, images))  # every image once
    difference = float((theirs(whole) - ours(whole))[0])
    drawn = np.concatenate([theirs(weights) - ours(weights) for weights in resamples(images, draws, seed)])
    drawn = drawn[np.isfinite(drawn)]  # a metric may be NaN on a test set, e.g. without positives
    low, high = np.percentile(drawn, [2.5, 97.5])
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1
    return difference, float(low), float(high), min(1.0, 2 * float(tail) / (len(drawn) + 1))


def over_trials(a: Score, b: Score, metric: str) -> Difference:
    """The difference b - a of two means over trials, with Welch's t-test.

    Args:
        a, b: Scores with standard deviations over at least two trials each.
        metric: Name of the metric.

    Raises:
        ValueError: A score has fewer than two trials; the message begins "not possible".
    """
    if min(a.trials, b.trials) < 2 or a.std is None or b.std is None:
        raise ValueError("not possible, because a deviation needs two trials of each")
    parts = [a.std**2 / a.trials, b.std**2 / b.trials]  # squared standard errors of the means
    difference, error = float(b) - float(a), math.sqrt(sum(parts))
    if error == 0:
        p = 0.0 if difference else 1.0
        return Difference(metric, difference, difference, difference, p, "trials without any spread")
    # degrees of freedom by Welch and Satterthwaite
    freedom = sum(parts) ** 2 / sum(part**2 / (score.trials - 1) for part, score in zip(parts, (a, b), strict=True))
    reach = float(stdtrit(freedom, 0.975)) * error
    p = 2 * float(stdtr(freedom, -abs(difference) / error))
    how = f"Welch's t, {a.trials} + {b.trials} trials"
    return Difference(metric, difference, difference - reach, difference + reach, p, how)


def significance(a: Record, b: Record, metric: str, draws: int = 2000, seed: int = 0) -> Difference | str:
    """The difference b - a by `over_trials` if both records have trials, else by `paired_bootstrap`.

    Args:
        a, b: The records.
        metric: Name of a score of both.
        draws, seed: See `paired_bootstrap`.

    Returns:
        The difference, or a text that begins "not possible" and says why.

    Raises:
        UserError: The predictions are damaged.
    """
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


def _describe_metric(metrics: Sequence[str]) -> str:
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


_PUBLIC_NAMES = {"voc_2007_test": "VOC07+12", "coco_2017_val": "COCO"}  # detectron2's names -> the papers'


def _detector(protocol: str) -> tuple[str, str | None, str | None]:
    """`detection/coco_R_50_C4_2x` -> (coco, R50-C4, 2x)."""
    match = _DETECTOR.match(protocol)
    return (match["data"], f"R{match['depth']}-{match['head']}", match["schedule"]) if match else ("", None, None)
