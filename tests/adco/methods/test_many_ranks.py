"""Several ranks are one process with the same global batch: losses, gradients, banks, whole runs."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.config.schema import BankConfig as BankOptions
from adco.config.schema import EncoderConfig, LossConfig, PretrainConfig, ViewConfig
from adco.losses.adco import adversarial_contrast
from adco.losses.caco import cooperative_contrast
from adco.losses.pairs import make_caco_pairs as caco_pairs
from adco.losses.pairs import make_pairs
from adco.methods import build_method
from adco.methods.base import TrainingProgress
from adco.models.memory_bank import MemoryBank
from adco.train.gradient_cache import backward, split
from adco.train.optimizer import build_optimizer
from adco.utils import distributed
from tests.ranks import run_ranks

N, D, K = 8, 6, 24  # N: of all ranks


def embeddings(views: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(3)
    rows = [F.normalize(torch.randn(N, D, generator=generator, dtype=torch.float64), dim=1) for _ in range(2 * views)]
    return rows[:views], rows[views:], 1.3 * torch.randn(K, D, generator=generator, dtype=torch.float64)


def one_contrast(game: str, placement: str, given: Tensor | None = None) -> dict[str, Tensor]:
    """The mean loss, the gradient of all queries, and the direction of the whole bank."""
    queries, keys, whole = embeddings(3)
    whole = whole if given is None else given
    own_queries = {v: distributed.local_shard(q).clone().requires_grad_() for v, q in enumerate(queries)}
    own_keys = {v: distributed.local_shard(k) for v, k in enumerate(keys)}
    sharded = placement == "sharded" and distributed.world_size() > 1
    bank = distributed.local_shard(whole) if sharded else whole
    if game == "caco":
        result = cooperative_contrast(own_queries, own_keys, caco_pairs(3), bank, 0.1, 0.08, sharded)
    else:
        in_batch, tau_bank, objective = {
            "released": (True, 0.03, "loss"), "paper": (False, 0.03, "loss"), "J": (True, 0.05, "J"),
            "moco": (False, None, "loss"),
        }[game]  # fmt: skip
        pairs = make_pairs(3, symmetric=True)
        result = adversarial_contrast(own_queries, own_keys, pairs, bank, 0.12, tau_bank, in_batch, objective, sharded)
    result.loss.backward()
    if given is not None:  # what it exchanges is of interest, nothing else
        return {} if result.bank_gradient is None else {"rows": len(result.bank_gradient.whole())}
    found = {f"gradient{v}": distributed.all_gather(q.grad) / distributed.world_size() for v, q in own_queries.items()}
    if result.bank_gradient is not None:
        direction = result.bank_gradient.whole()
        found["direction"] = distributed.all_gather(direction) if sharded else direction
    return found | {
        "loss": distributed.all_reduce_mean(result.loss.detach()),
        "accuracy": distributed.all_reduce_mean(result.accuracy),
    }


@pytest.mark.parametrize("game", ["released", "paper", "J", "moco", "caco"])
def test_losses_gradients_and_directions_equal_one_process(game):
    alone = one_contrast(game, "replicated")
    for ranks in (2, 4):
        for placement in ("sharded", "replicated"):
            if game == "released" and placement == "replicated" and ranks == 4:
                continue  # 2 ranks cover it
            answers = run_ranks(one_contrast, ranks, game, placement)
            for answer in answers:
                assert answer.keys() == alone.keys()
                for name, value in alone.items():
                    torch.testing.assert_close(
                        answer[name], value, rtol=0, atol=1e-10, msg=f"{ranks} {placement} {name}"
                    )


def recipe(method: str, **encoder) -> PretrainConfig:
    bank = BankOptions(size=K, lr=1.0, init="random", weight_decay=1e-4)
    options = EncoderConfig(arch="resnet18", stem="small", dim=D, key_momentum=0.9, **encoder)
    return PretrainConfig(
        method=method,
        batch=N,
        views=[ViewConfig(), ViewConfig()],
        encoder=options,
        bank=bank,
        contrast=LossConfig(0.12, 0.05),
    )


def tiny_backbone(arch: str, stem: str) -> nn.Module:
    """As wide as a ResNet-18, and as sensitive to its batch."""
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 512, 3, stride=2), nn.BatchNorm2d(512)
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def trained(recipe: PretrainConfig, steps: int = 20) -> dict[str, Tensor]:
    """The state after some steps on the same global batches, in float64; the loss is the mean over the ranks."""
    torch.manual_seed(0)
    with mock.patch("adco.models.encoder.build_resnet", tiny_backbone):
        method = build_method(recipe).double()
    network = distributed.parallel(method.encoder)
    optimizer = build_optimizer(recipe.optimizer, method.encoder, fused=False)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    generator = torch.Generator().manual_seed(1)
    for number in range(steps):
        views = [
            distributed.local_shard(torch.randn(N, 3, 10, 10, generator=generator, dtype=torch.float64))
            for _ in recipe.views
        ]
        moment = TrainingProgress(number, steps, 5)
        optimizer.zero_grad()
        step = backward(method, network, split(views, recipe.compute.accumulate), moment, scaler)
        optimizer.step()
        method.update(step, moment, bank_lr=1.0)
    state = {name: value for name, value in method.state_dict().items() if not name.endswith("batches_tracked")}
    return state | {"loss": distributed.all_reduce_mean(step.loss.detach())}


def close(a: dict[str, Tensor], b: dict[str, Tensor], but: str = "nothing") -> None:
    assert a.keys() == b.keys()
    for name in a:
        if but not in name:
            torch.testing.assert_close(a[name], b[name], rtol=1e-7, atol=1e-8, msg=name)


@pytest.mark.parametrize("method", ["adco", "caco", "moco"])
def test_ranks_with_synced_norms_equal_one_process_with_the_whole_batch(method):
    synced = recipe(method, batch_norm="sync", key_batch_norm="sync")
    alone = trained(synced)
    for ranks, placement in ((2, "sharded"), (4, "replicated")):
        answers = run_ranks(trained, ranks, replace(synced, bank=replace(synced.bank, placement=placement)))
        close(alone, answers[0])
        for answer in answers[1:]:
            assert all(torch.equal(answers[0][name], answer[name]) for name in answer if "running" not in name)


@pytest.mark.parametrize("method", ["adco", "caco", "moco"])
@pytest.mark.parametrize("key", ["shuffle", "local"])
def test_splits_and_accumulation_on_one_process_imitate_the_local_norms_of_two_ranks(method, key):
    ranks = run_ranks(trained, 2, recipe(method, key_batch_norm=key), 6)
    split_norms = trained(recipe(method, key_batch_norm=key, norm_splits=2), 6)
    accumulated = recipe(method, key_batch_norm=key)
    accumulated = trained(replace(accumulated, compute=replace(accumulated.compute, accumulate=2)), 6)
    for found in (split_norms, accumulated):
        close(ranks[0], found, but="running")  # running statistics: rank 0's own against those of all images
    means = torch.stack([r["encoder.backbone.1.running_mean"] for r in ranks]).mean(dim=0)
    torch.testing.assert_close(split_norms["encoder.backbone.1.running_mean"], means, rtol=1e-7, atol=1e-8)


def test_local_norms_do_see_the_split():
    """The equalities above could hold because statistics do not matter; they do."""
    one, two = trained(recipe("adco"), 2), trained(recipe("adco", norm_splits=2), 2)
    assert (one["encoder.backbone.0.weight"] - two["encoder.backbone.0.weight"]).abs().max() > 1e-6


def traffic(game: str, rows: int, placement: str) -> int:
    """Bytes that this rank puts into collectives in one evaluation with a bank of so many rows."""
    sent = 0

    def counted(function, place: int):
        def call(*args, **kwargs):
            nonlocal sent
            sent += args[place].numel() * args[place].element_size()
            return function(*args, **kwargs)

        return call

    dist = distributed.dist
    with (
        mock.patch.object(dist, "all_reduce", counted(dist.all_reduce, 0)),
        mock.patch.object(dist, "all_gather_into_tensor", counted(dist.all_gather_into_tensor, 1)),
    ):
        one_contrast(game, placement, torch.randn(rows, D, dtype=torch.float64))
    return sent


@pytest.mark.parametrize("game", ["released", "paper", "J", "moco", "caco"])
def test_traffic_of_a_sharded_bank_does_not_depend_on_its_size(game):
    small, large = (run_ranks(traffic, 2, game, rows, "sharded") for rows in (64, 4096))
    assert small == large
    if game != "moco":  # a queue has no gradient to exchange
        assert run_ranks(traffic, 2, game, 4096, "replicated")[0] >= 4096 * D * 8


def a_million_rows() -> tuple[int, float, float]:
    """One step with a bank of 2^20 rows in float32: rows held, loss, and how far the rows moved."""
    options = BankOptions(size=2**20, lr=1.0)
    torch.manual_seed(0)
    bank = MemoryBank(options, dim=16)
    queries = {0: F.normalize(torch.randn(4, 16), dim=1).requires_grad_()}
    keys = {1: F.normalize(torch.randn(4, 16), dim=1)}
    before = bank.rows.clone()
    result = adversarial_contrast(
        queries, keys, make_pairs(2, False), bank.rows, 0.12, 0.03, True, sharded=bank.sharded
    )
    result.loss.backward()
    bank.sgd_ascent_step(result.bank_gradient, 1.0)
    assert queries[0].grad.isfinite().all()
    return (
        len(bank.rows),
        distributed.all_reduce_mean(result.loss.detach()).item(),
        (bank.rows - before).abs().max().item(),
    )


def test_a_bank_of_a_million_rows_is_shared_out():
    (alone, loss, moved), halves = a_million_rows(), run_ranks(a_million_rows, 2)
    assert alone == 2**20
    assert moved > 0
    for rows, its_loss, _ in halves:
        assert rows == 2**19
        assert its_loss == pytest.approx(loss, rel=0.05)  # other queries on each rank, the same bank
