"""VOC07's SVM protocols as data: each is a published way to obtain a number, under the name it is reported by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from transfer.features.extract import VISSL_POOLS
from transfer.svm.svm import SvmRule

VISSL_COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
POWERS_OF_TWO = tuple(2.0**power for power in range(-19, -3))
FAIR_COSTS = (*(10.0**power for power in range(-7, 3)), *POWERS_OF_TWO)
OPENSELFSUP_COSTS = (1.0, 10.0, 100.0, *POWERS_OF_TWO)


@dataclass(frozen=True)
class LowShot:
    """On how few images a protocol trains, and how their C is chosen.

    Attributes:
        shots: values of k.
        samples: independent draws of each k.
        pooled: draw k images of each class into one set and take all their labels, as PCL does; else each class has k
            positives and 19 k negatives of its own.
        cost: `fixed` (the rule's first), `test` (VISSL: the one cost of the largest test AP, averaged over classes and
            draws: it uses the test), or `cv` (each class's best by cross-validation within the draw; the smallest cost
            where k is too small for folds).
    """

    shots: tuple[int, ...]
    samples: int
    pooled: bool
    cost: str


@dataclass(frozen=True)
class SvmProtocol:
    """One published way to train SVMs on VOC07.

    Attributes:
        name: as records carry it.
        fit: the test transform (transfer/features/transforms.py).
        kind: the feature, `gap` or a VISSL-pooled stage.
        rule: costs, and the treatment of difficult images.
        about: two lines that `--protocol list` prints.
        seeded: whether the protocol leaves `random_state` open, so that --seed sets it.
        low_shot: how few images it trains on, None for all.
    """

    name: str
    fit: str
    kind: str
    rule: SvmRule
    about: str
    seeded: bool = False
    low_shot: LowShot | None = None


_VISSL_ABOUT = "Resize 256, then squash to 224x224; res5 pooled to 2x2 (8192-d for a ResNet-50); x / (|x| + 1e-5).\n"
_CV_ABOUT = "C per class by 3-fold CV over {}; difficult: negative in training, dropped at test; all-point AP."
_PCL_ABOUT = "Shorter side 256, centre crop 224; global average pool (2048-d for a ResNet-50); x / (|x| + 1e-5).\n"
_DRAWS_ABOUT = "k = 1 ... 96: 5 draws of k positives and 19k negatives a class from trainval, the rest ignored;\n"


def _vissl(name: str, costs: tuple[float, ...], grid: str) -> SvmProtocol:
    rule = SvmRule(costs, drop_difficult=True)
    return SvmProtocol(f"voc07-svm/{name}", "squash", "res5", rule, _VISSL_ABOUT + _CV_ABOUT.format(grid), seeded=True)


def _vissl_low_shot(name: str, cost: str, how: str) -> SvmProtocol:
    shots, rule = LowShot((1, 2, 4, 8, 16, 32, 64, 96), 5, False, cost), SvmRule(VISSL_COSTS, drop_difficult=True)
    return SvmProtocol(f"voc07-lowshot/{name}", "squash", "res5", rule, _DRAWS_ABOUT + how, seeded=True, low_shot=shots)


_PCL_RULE = SvmRule((0.5,), drop_difficult=False, random_state=0)

PROTOCOLS = {
    "pcl": SvmProtocol(
        "voc07-svm/pcl",
        "center",
        "gap",
        _PCL_RULE,
        _PCL_ABOUT + "LinearSVC with C = 0.5; difficult images are negatives in training and test; all-point AP.",
    ),
    "vissl": _vissl("vissl", VISSL_COSTS, ".01 ... 1000 (11 values)"),
    "fair": _vissl("fair", FAIR_COSTS, "10^-7 ... 10^2 and 2^-19 ... 2^-4"),
    "openselfsup": _vissl("openselfsup", OPENSELFSUP_COSTS, "1, 10, 100 and 2^-19 ... 2^-4"),
    "lowshot-vissl": _vissl_low_shot(
        "vissl", "test", "vissl's features, costs and metric; the one C of the best mean TEST AP, as VISSL has it."
    ),
    "lowshot-vissl-cv": _vissl_low_shot(
        "vissl-cv", "cv", "as lowshot-vissl, but C per class by CV within the draw: the test is not used."
    ),
    "lowshot-pcl": SvmProtocol(
        "voc07-lowshot/pcl",
        "center",
        "gap",
        _PCL_RULE,
        "k = 1, 2, 4, 8, 16: 5 draws of k images a class from trainval, pooled, with all their labels; C = 0.5;\n"
        "features, classifier and metric of pcl.",
        low_shot=LowShot((1, 2, 4, 8, 16), 5, True, "fixed"),
    ),
}


def chosen_protocols(names: Iterable[str], stages: Sequence[str], seed: int) -> list[SvmProtocol]:
    """Look the protocols up by name.

    Args:
        names: names that PROTOCOLS has.
        stages: the stages that protocols of pooled stages are run on, or `all`; another stage than the protocol's own
            becomes part of its name.
        seed: the `random_state` of protocols that leave it open.

    Returns:
        Each protocol once, and once per stage.
    """
    protocols = []
    for name in dict.fromkeys(names):
        protocol = PROTOCOLS[name]
        if protocol.seeded:
            protocol = replace(protocol, rule=replace(protocol.rule, random_state=seed))
        if protocol.kind == "gap":
            protocols.append(protocol)
            continue
        for stage in list(VISSL_POOLS) if "all" in stages else dict.fromkeys(stages):
            suffix = "" if stage == protocol.kind else f"-{stage}"
            protocols.append(replace(protocol, kind=stage, name=protocol.name + suffix))
    return protocols
