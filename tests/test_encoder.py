"""Encoders give unit rows; the key encoder follows by exponential moving average and takes no gradient."""

from __future__ import annotations

import pytest
import torch

from adco.encoder import Encoder, key_encoder_of, momentum_update


@pytest.mark.parametrize(
    ("arch", "stem", "px"), [("resnet18", "small", 16), ("resnet18", "imagenet", 64), ("resnet50", "imagenet", 32)]
)
def test_embeddings_are_unit_rows(arch, stem, px):
    rows = Encoder(arch, stem, dim=24)(torch.randn(3, 3, px, px))
    assert rows.shape == (3, 24)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))


def test_momentum_update_is_the_moving_average_of_parameters_only():
    query = Encoder("resnet18", "small", dim=8)
    key = key_encoder_of(query)
    before = {name: p.clone() for name, p in key.named_parameters()}
    with torch.no_grad():
        for p in query.parameters():
            p.add_(torch.randn_like(p))
    query.backbone.bn1.running_mean += 1
    momentum_update(key, query, 0.9)
    for (name, k), q in zip(key.named_parameters(), query.parameters(), strict=True):
        torch.testing.assert_close(k, 0.9 * before[name] + 0.1 * q)
        assert not k.requires_grad
        assert q.requires_grad
    assert torch.equal(key.backbone.bn1.running_mean, torch.zeros(64))
