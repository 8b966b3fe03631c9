"""transfer/classifier/protocols.py: values, schedules, and what a changed length or batch changes."""

import math

import pytest

from adco.data.transforms.evaluation import FITS
from adco.utils.errors import UserError
from tests.transfer.classifier import ALL
from transfer.classifier.protocols import IMAGENET, PLACES205, VOC_ADCO


def test_schedules_by_hand():
    moco, adco, places, fair = IMAGENET["moco"], IMAGENET["adco"], PLACES205["adco"], PLACES205["fair"]
    assert [moco.factor(epoch * 10, 10) for epoch in (0, 59, 60, 79, 80, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert adco.factor(0, 10) * adco.lr == 10 and adco.factor(500, 10) * adco.lr == pytest.approx(0.5 * 10.01)
    assert adco.factor(999, 10) == adco.factor(990, 10)  # by epoch
    assert [places.factor(step, 10) for step in (0, 60, 120, 240)] == pytest.approx([1, 0.5, 0, 1])  # it oscillates
    assert [fair.factor(step, 7) for step in (39_999, 40_000, 120_000)] == pytest.approx([1, 0.1, 0.001])
    assert fair.steps(1000) == (4, 140_000)
    voc = [VOC_ADCO.factor(epoch, 1) for epoch in range(3)]
    assert voc == pytest.approx([0.5 * (1 + math.cos(math.pi * (epoch + 1) / 12)) for epoch in range(3)])


def test_values_are_the_tables():
    places = {n: (r.lr, r.epochs, r.iterations, r.weight_decay, r.milestones) for n, r in PLACES205.items()}
    assert places == {
        "vissl": (0.01, 14, 0, 5e-4, (4, 8, 12)),
        "fair": (0.01, 0, 140_000, 1e-4, (40_000, 80_000, 120_000)),
        "openselfsup": (0.01, 28, 0, 1e-4, (7, 14, 21)),
        "adco": (5.0, 100, 0, 0.0, ()),
    }
    imagenet = {n: (r.lr, r.epochs, r.batch, r.weight_decay, r.optimizer) for n, r in IMAGENET.items()}
    assert imagenet["adco"] == (10.0, 100, 256, 0.0, "sgd") and imagenet["moco"] == (30.0, 100, 256, 0.0, "sgd")
    assert imagenet["simsiam"] == (pytest.approx(0.1 * 4096 / 256), 90, 4096, 0.0, "larc")
    assert imagenet["swav"] == (0.3, 100, 256, 1e-6, "sgd")
    assert imagenet["caco"] == (pytest.approx(0.025 * 4096 / 256), 100, 4096, 0.0, "larc")
    assert (VOC_ADCO.lr, VOC_ADCO.epochs, VOC_ADCO.batch, VOC_ADCO.loss) == (0.05, 100, 16, "bce")


@pytest.mark.parametrize("protocol", ALL.values(), ids=ALL)
def test_protocols_explain_themselves(protocol):
    assert len(protocol.about.splitlines()) == 2 and all(len(line) < 118 for line in protocol.about.splitlines())
    assert protocol.fit in FITS and protocol.backbone in ("frozen", "statistics", "tuned")


def test_deviations_are_in_the_name():
    short = IMAGENET["moco"].shortened(10, 64)
    assert (short.name, short.epochs, short.milestones, short.lr) == (
        "imagenet-linear/moco-10ep-batch64",
        10,
        (6, 8),
        7.5,
    )
    assert IMAGENET["moco"].shortened(100, 256) is IMAGENET["moco"]
    assert PLACES205["adco"].shortened(50, None).period_epochs == 6
    with pytest.raises(UserError, match="iterations"):
        PLACES205["fair"].shortened(3, None)
