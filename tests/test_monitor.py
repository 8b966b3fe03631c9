"""The kNN probe sees what is in the features, and leaves the network as it found it."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from adco.errors import UserError
from adco.monitor import KnnProbe, Rate, read_metrics

CPU = torch.device("cpu")


class Orientation(nn.Module):
    """A hand-made feature that tells the fixture's stripes apart: energies of horizontal and vertical differences."""

    def forward(self, images):
        gray = images.mean(dim=1)
        across, down = (gray.diff(dim=2)[:, 1:], gray.diff(dim=1)[:, :, 1:])
        energies = torch.stack(
            [across.square().mean(dim=(1, 2)), down.square().mean(dim=(1, 2)), (across * down).mean(dim=(1, 2))], 1
        )
        return energies / energies[:, :2].sum(dim=1, keepdim=True)


class Noise(nn.Module):
    def forward(self, images):
        return torch.randn(len(images), 8)


def probe(root, **changes):
    return KnnProbe(root, **({"px": 32, "k": 5, "temperature": 0.07, "max_images": 1000, "workers": 0} | changes))


def test_good_features_score_high_and_noise_does_not(pictures):
    torch.manual_seed(0)
    assert probe(pictures)(Orientation(), CPU) > 80
    assert probe(pictures)(Noise(), CPU) < 70


@pytest.mark.parametrize("training", [True, False])
def test_the_networks_mode_and_statistics_are_put_back(pictures, training):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    probe(pictures)(network, CPU)
    assert network.training is training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_at_most_max_images_are_used_evenly_over_the_classes(pictures):
    small = probe(pictures, max_images=12)
    assert [len(part) for part in small.sets] == [12, 9]
    labels = [small.sets[0][i][1] for i in range(12)]
    assert [labels.count(label) for label in range(3)] == [4, 4, 4]


def test_different_classes_in_train_and_val_are_refused(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "val" / "class2")
    with pytest.raises(UserError, match="different classes"):
        probe(tmp_path / "data")


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_rate_counts_since_the_last_question():
    rate = Rate()
    rate.last -= 2
    assert rate(10) == pytest.approx(5, rel=0.05)
    rate.last -= 1
    assert rate(13) == pytest.approx(3, rel=0.05)
