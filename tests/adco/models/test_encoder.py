"""Encoders give unit rows; the key encoder follows by exponential moving average and takes no gradient."""

from __future__ import annotations

import pytest
import torch

from adco.config.schema import EncoderConfig as Options
from adco.models.encoder import Encoder, make_key_encoder, mlp_head, momentum_update, paired_parameters


@pytest.mark.parametrize(
    ("arch", "stem", "px"), [("resnet18", "small", 16), ("resnet18", "imagenet", 64), ("resnet50", "imagenet", 32)]
)
def test_embeddings_are_unit_rows(arch, stem, px):
    rows = Encoder(Options(arch, stem, dim=24))([torch.randn(3, 3, px, px)])[0]
    assert rows.shape == (3, 24)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))


def test_momentum_update_is_the_moving_average_of_parameters_only():
    query = Encoder(options := Options("resnet18", "small", dim=8), tail=torch.nn.Linear(8, 2))
    key = make_key_encoder(query, options)
    assert key.tail is None
    before = {name: p.clone() for name, p in key.named_parameters()}
    with torch.no_grad():
        for p in query.parameters():
            p.add_(torch.randn_like(p))
    query.backbone.bn1.running_mean += 1
    momentum_update(*paired_parameters(key, query), 0.9)
    followed = dict(query.named_parameters())
    for name, k in key.named_parameters():
        q = followed[name]
        torch.testing.assert_close(k, 0.9 * before[name] + 0.1 * q)
        assert not k.requires_grad
        assert q.requires_grad
    assert torch.equal(key.backbone.bn1.running_mean, torch.zeros(64))


def test_heads_are_those_of_the_papers():
    def layers(**options) -> list[str]:
        return [str(layer).split(",")[0] if "Linear" not in str(layer) else
                f"{layer.in_features}>{layer.out_features}{'+b' if layer.bias is not None else ''}"
                for layer in mlp_head(2048, Options(**options))]  # fmt: skip

    assert layers() == ["2048>2048+b", "ReLU(inplace=True)", "2048>128+b"]  # MoCo v2, AdCo
    caco = layers(dim=256, head_layers=3, head_norm=True, head_out_bias=False)
    hidden = ["2048>2048", "BatchNorm1d(2048", "ReLU(inplace=True)"]
    assert caco == [*hidden, *hidden, "2048>256"]
    simsiam = layers(dim=2048, head_layers=3, head_norm=True, head_out_norm=True)
    assert simsiam == [*hidden, *hidden, "2048>2048", "BatchNorm1d(2048"]


def test_joined_views_share_their_statistics_by_size_only():
    views = [torch.randn(4, 3, px, px) for px in (16, 16, 12)]
    torch.manual_seed(0)
    apart = Encoder(Options("resnet18", "small", dim=8))
    joined = Encoder(Options("resnet18", "small", dim=8, join_views=True))
    joined.load_state_dict(apart.state_dict())
    a, b = apart(views), joined(views)
    assert [row.shape for row in b] == [(4, 8)] * 3
    assert not torch.allclose(a[0], b[0], atol=1e-4)  # in training two views of a size are one batch
    torch.testing.assert_close(a[2], b[2])
    a, b = apart.eval()(views), joined.load_state_dict(apart.state_dict()) and joined.eval()(views)
    torch.testing.assert_close(a, b)


def test_autocast_leaves_float32_rows():
    encoder = Encoder(Options("resnet18", "small", dim=8))
    exact = encoder([images := torch.randn(4, 3, 16, 16)])[0]
    encoder.precision = torch.bfloat16
    rows = encoder([images])[0]
    assert rows.dtype == torch.float32
    assert not torch.equal(rows, exact)
    assert (rows * exact).sum(dim=1).min() > 0.98
