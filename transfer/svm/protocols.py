"""VOC07's protocols by name: each a published way to obtain a number, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adco.utils.errors import UserError
from transfer.features.extract import VISSL_POOLS
from transfer.svm.svm import SvmRule

VISSL_COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
POWERS_OF_TWO = tuple(2.0**power for power in range(-19, -3))
FAIR_COSTS = (*(10.0**power for power in range(-7, 3)), *POWERS_OF_TWO)
OPENSELFSUP_COSTS = (1.0, 10.0, 100.0, *POWERS_OF_TWO)


@dataclass(frozen=True)
class LowShot:
    """How few images are trained on, and how their C is chosen.

    shots: values of k; samples: independent draws of each; pooled: `pcl` draws k images of each class into one set and
    takes all their labels, else each class has k positives and 19 k negatives of its own. cost: `fixed` (the rule's
    first), `test` (VISSL: the one cost whose test AP, averaged over classes and draws, is largest: it looks at the
    test), `cv` (each class's best by cross-validation within the draw, the smallest cost where folds are impossible).
    """

    shots: tuple[int, ...]
    samples: int
    pooled: bool
    cost: str


@dataclass(frozen=True)
class Protocol:
    """name: as records carry it; fit, kind: transform and feature; seeded: the protocol leaves random_state open, so
    --seed sets it; about: two lines."""

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


def _vissl(name: str, costs: tuple[float, ...], grid: str) -> Protocol:
    rule = SvmRule(costs, drop_difficult=True)
    return Protocol(f"voc07-svm/{name}", "squash", "res5", rule, _VISSL_ABOUT + _CV_ABOUT.format(grid), seeded=True)


def _vissl_low_shot(name: str, cost: str, how: str) -> Protocol:
    shots, rule = LowShot((1, 2, 4, 8, 16, 32, 64, 96), 5, False, cost), SvmRule(VISSL_COSTS, drop_difficult=True)
    return Protocol(f"voc07-lowshot/{name}", "squash", "res5", rule, _DRAWS_ABOUT + how, seeded=True, low_shot=shots)


_PCL_RULE = SvmRule((0.5,), drop_difficult=False, random_state=0)

PROTOCOLS = {
    "pcl": Protocol(
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
        "vissl-cv", "cv", "as lowshot-vissl, but C per class by CV within the draw: the test is not looked at."
    ),
    "lowshot-pcl": Protocol(
        "voc07-lowshot/pcl",
        "center",
        "gap",
        _PCL_RULE,
        "k = 1, 2, 4, 8, 16: 5 draws of k images a class from trainval, pooled, with all their labels; C = 0.5;\n"
        "features, classifier and metric of pcl.",
        low_shot=LowShot((1, 2, 4, 8, 16), 5, True, "fixed"),
    ),
}


def chosen_protocols(names: list[str], stages: list[str], seed: int) -> list[Protocol]:
    """The protocols by name, each once and once per stage, with the seed where they leave it open. Raises UserError."""
    protocols = []
    for name in dict.fromkeys(names):
        if name not in PROTOCOLS:
            raise UserError(
                f"--protocol {name}: not known; choose {', '.join(PROTOCOLS)} or adco, or list to read of them"
            )
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
