"""transfer/classifier/dataset.py: which images a step takes, and what the network sees of them."""

import numpy as np
import torch
from torchvision.transforms import functional as pixels

from adco.data.transforms import functional
from adco.utils import distributed
from tests.transfer.data import draw_image, splits
from transfer.classifier.dataset import (
    Request,
    TrainingPictures,
    lighting,
    renormalised,
    requests,
    to_network,
    voc_view,
)
from transfer.classifier.protocols import IMAGENET


def test_an_epoch_takes_every_image_once_whatever_the_ranks(monkeypatch):
    alone = [r.samples for r in requests(0, 21, 8, 0, 6)]
    assert [len(samples) for samples in alone] == [8, 8, 5, 8, 8, 5]
    for epoch in (0, 1):
        assert sorted(np.concatenate(alone[3 * epoch : 3 * epoch + 3])) == list(range(21))
    assert (np.concatenate(alone[:3]) != np.concatenate(alone[3:])).any()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        halves.append([r.samples for r in requests(0, 21, 8, 0, 6)])
    for whole, one, two in zip(alone, *halves, strict=True):
        assert len(one) == len(two) == -(-len(whole) // 2) and set(whole) <= set(one) | set(two)


def test_statistics_of_a_protocol_replace_imagenets():
    swav, image = IMAGENET["swav"], torch.rand(2, 3, 4, 4)
    expected = pixels.normalize(image, [0.485, 0.456, 0.406], [0.228, 0.224, 0.225])
    torch.testing.assert_close(renormalised(functional.normalize(image), swav), expected)
    assert renormalised(image, IMAGENET["moco"]) is image


def test_lighting_is_alexnets():
    """Its covariance over many images is V diag((0.1 l)^2) V'."""
    images = torch.zeros(20_000, 3, 1, 1)
    noise = lighting(0, Request(0, np.arange(20_000)), images)[:, :, 0, 0].double()
    vectors = torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    ).double()
    expected = vectors @ torch.diag((0.1 * torch.tensor([0.2175, 0.0188, 0.0045]).double()) ** 2) @ vectors.T
    torch.testing.assert_close(torch.cov(noise.T), expected, rtol=0.05, atol=2e-6)


def test_the_voc_view_without_chance_is_a_plain_squash():
    image = draw_image(0, [(200, 30, 30)])
    plain = voc_view(image, 48, np.array([0.9, 0.5, 0.9, 0.9, 0.5]))  # no grey, no flip, angle 0
    np.testing.assert_array_equal(plain, np.asarray(pixels.resize(image, [48, 48], antialias=True)).transpose(2, 0, 1))
    flipped = voc_view(image, 48, np.array([0.9, 0.5, 0.9, 0.1, 0.5]))
    np.testing.assert_array_equal(flipped, plain[:, :, ::-1])
    gray = voc_view(image, 48, np.array([0.9, 0.5, 0.1, 0.9, 0.5]))
    assert (gray[0] == gray[1]).all() and (plain[0] != plain[1]).any()
    bright = voc_view(image, 48, np.array([0.1, 1.0, 0.1, 0.9, 0.5]))
    assert bright.mean() > 1.1 * plain.mean()


def test_the_crops_of_a_step_do_not_depend_on_who_shares_it(folder):
    data, protocol = splits(folder)[0], IMAGENET["moco"]
    samples = np.array([3, 17, 8, 20])
    whole = TrainingPictures(data, protocol, 32, 0)[Request(4, samples)]
    half = TrainingPictures(data, protocol, 32, 0)[Request(4, samples[1::2])]
    seen = [to_network(item[1], item[0], protocol, 32, 0, torch.device("cpu")) for item in (whole, half)]
    torch.testing.assert_close(seen[0][1::2], seen[1], rtol=0, atol=0)
    assert whole[2].tolist() == [data.labels[s] for s in samples]
