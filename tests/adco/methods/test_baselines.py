"""The baselines: each loss equals a loop written from its paper, with its gradients; ranks and micro-batches agree."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adco.config.schema import LossConfig, MoCHiConfig, PretrainConfig, SwAVConfig, ViewConfig
from adco.losses.sinkhorn import sinkhorn
from adco.methods import build_method
from adco.methods.base import TrainingProgress
from adco.methods.mochi import mixed_negatives
from adco.train.gradient_cache import backward
from adco.train.optimizer import build_optimizer
from adco.utils import philox
from adco.utils.errors import UserError
from tests.adco.methods import test_many_ranks
from tests.adco.methods.test_many_ranks import D, N, close, tiny_backbone, trained
from tests.ranks import run_ranks

C = 7  # prototypes
FIRST = TrainingProgress(step=0, steps=40, steps_per_epoch=5)
LATE = TrainingProgress(step=22, steps=40, steps_per_epoch=5)
BASELINES = ("mochi", "simclr", "byol", "simsiam", "swav")


def recipe(method: str, views: int = 2, **changes) -> PretrainConfig:
    encoder = {"batch_norm": "sync", "key_batch_norm": "sync", "predictor_width": 5, "join_views": method == "simclr"}
    whole = test_many_ranks.recipe(method, **encoder)
    swap = SwAVConfig(prototypes=C, frozen_epochs=0.0, queue=2 * N, queue_from_epoch=1)
    mix = MoCHiConfig(hard=5, pairs=4, with_query=3, from_epoch=1)
    return replace(whole, views=[ViewConfig()] * views, contrast=LossConfig(tau=0.3), mix=mix, swap=swap, **changes)


def build(recipe: PretrainConfig):
    torch.manual_seed(0)
    with mock.patch("adco.models.encoder.build_resnet", tiny_backbone):
        return build_method(recipe).double()


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(rows(*shape, seed=seed), dim=-1)


def same(ours: Tensor, naive: Tensor, leaves: list[Tensor]) -> None:
    """The value, and the gradient to every leaf, to 1e-10."""
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-10)
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(naive, leaves), strict=True):
        assert b.abs().max() > 1e-4
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_simclr_equals_a_loop_over_all_pairs_of_views():
    method, outputs = build(recipe("simclr")), {v: unit(N, D, seed=v).requires_grad_() for v in (0, 1)}
    step = method.compute_loss(outputs, {}, FIRST)
    z = [outputs[v][i] for i in range(N) for v in (0, 1)]  # the paper's order: 2k - 1 and 2k are views of image k
    total = 0.0
    for i in range(2 * N):
        j = i + 1 if i % 2 == 0 else i - 1
        below = sum(torch.exp(z[i] @ z[k] / 0.3) for k in range(2 * N) if k != i)
        total = total - torch.log(torch.exp(z[i] @ z[j] / 0.3) / below)
    same(step.loss, total / (2 * N), list(outputs.values()))


def test_simclr_counts_views_that_find_each_other():
    method, first = build(recipe("simclr")), torch.eye(6, dtype=torch.float64)[:4]
    accuracy = method.compute_loss({0: first, 1: first[[0, 1, 3, 2]]}, {}, FIRST).scalars["accuracy"]
    assert accuracy == 50  # the views of images 2 and 3 are each other's


def test_byol_equals_a_loop_over_squared_distances():
    method, outputs = build(recipe("byol")), {v: rows(N, D, seed=v).requires_grad_() for v in (0, 1)}
    keys = {v: rows(N, D, seed=v + 2).requires_grad_() for v in (0, 1)}
    step = method.compute_loss(outputs, keys, FIRST)
    total = 0.0
    for i in range(N):
        for query, key in ((0, 1), (1, 0)):
            q, k = outputs[query][i], keys[key][i]
            total = total + (2 - 2 * (q @ k) / (q.norm() * k.norm())) / N
    same(step.loss, total, list(outputs.values()))
    torch.testing.assert_close(step.queries.norm(dim=1), torch.ones(N, dtype=torch.float64))


def test_simsiam_equals_a_loop_and_stops_the_gradient_of_the_embeddings():
    method, outputs = build(recipe("simsiam")), {v: rows(N, 2 * D, seed=v).requires_grad_() for v in (0, 1)}
    step = method.compute_loss(outputs, {}, FIRST)
    total = 0.0
    for i in range(N):
        for query, key in ((0, 1), (1, 0)):
            p, z = outputs[query][i, :D], outputs[key][i, D:].detach()
            total = total - 0.5 * (p @ z) / (p.norm() * z.norm()) / N
    same(step.loss, total, list(outputs.values()))
    for gradient in torch.autograd.grad(method.compute_loss(outputs, {}, FIRST).loss, list(outputs.values())):
        assert gradient[:, D:].abs().max() == 0 < gradient[:, :D].abs().min()


def loop_sinkhorn(scores: Tensor, epsilon: float, rounds: int) -> Tensor:
    """Algorithm 1 of the paper, an entry at a time, with its factors 1/K and 1/B written out."""
    samples, prototypes = scores.shape
    q = [[math.exp(scores[b, k].item() / epsilon) for b in range(samples)] for k in range(prototypes)]
    whole = sum(sum(line) for line in q)
    q = [[entry / whole for entry in line] for line in q]
    for _ in range(rounds):
        q = [[entry / (sum(line) * prototypes) for entry in line] for line in q]
        columns = [sum(q[k][b] for k in range(prototypes)) for b in range(samples)]
        q = [[q[k][b] / (columns[b] * samples) for b in range(samples)] for k in range(prototypes)]
    return torch.tensor(q, dtype=torch.float64).T * samples


def test_sinkhorn_equals_the_papers_algorithm_and_shares_samples_evenly():
    scores = unit(12, D, seed=5) @ unit(C, D, seed=6).T
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3), loop_sinkhorn(scores, 0.05, 3), rtol=0, atol=1e-10)
    settled = sinkhorn(scores, 0.2, 200)
    torch.testing.assert_close(settled.sum(dim=1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(settled.sum(dim=0), torch.full((C,), 12 / C, dtype=torch.float64))
    greedy = torch.softmax(scores / 0.2, dim=1).sum(dim=0)
    assert (greedy - 12 / C).abs().max() > 0.3  # without it, prototypes get unequal shares
    sharp = sinkhorn(scores.float(), 0.004, 3)
    assert torch.isfinite(sharp).all()
    assert sharp.dtype == torch.float32


@pytest.mark.parametrize(("views", "moment"), [(2, FIRST), (4, FIRST), (4, LATE)], ids=["two", "multi-crop", "queue"])
def test_swav_equals_a_loop_over_swapped_predictions(views, moment):
    method, z = build(recipe("swav", views)), [unit(N, D, seed=v).requires_grad_() for v in range(views)]
    method.queue.copy_(unit(2, 2 * N, D, seed=9))
    step = method.compute_loss({v: method.encoder.tail(z[v]) for v in range(views)}, {}, moment)
    weight, total = method.encoder.tail.weight, 0.0
    for i in (0, 1):
        seen = torch.cat([method.queue[i], z[i]]) if moment is LATE else z[i]
        q = loop_sinkhorn((seen @ weight.T).detach(), 0.05, 3)[-N:]
        for v in range(views):
            for b in range(N) if v != i else ():
                e = [torch.exp(z[v][b] @ weight[c] / 0.3) for c in range(C)]
                losses = [q[b, c] * torch.log(e[c] / sum(e)) for c in range(C)]
                total = total - sum(losses) / (N * 2 * (views - 1))
    same(step.loss, total, [*z, weight])


def test_swav_assigns_with_the_two_newest_batches_once_its_queue_is_full():
    method = build(recipe("swav"))
    weight, scores = method.encoder.tail.weight.detach(), unit(N, D, seed=1) @ method.encoder.tail.weight.detach().T
    for number in range(4, 10):  # the queue's first epoch begins with step 5
        moment, held = (
            TrainingProgress(number, 40, 5),
            [unit(N, D, seed=100 + past) for past in (number - 2, number - 1)],
        )
        whole = torch.cat([*(past @ weight.T for past in held if number >= 7), scores])
        assigned = method.assign(1, scores, moment)
        torch.testing.assert_close(assigned, sinkhorn(whole, 0.05, 3)[-N:], rtol=0, atol=1e-10)
        method.update(mock.Mock(queries=-held[0], keys=unit(N, D, seed=100 + number)), moment, 0.0)
    assert "queue" in method.state_dict()


def test_swav_refuses_a_queue_that_batches_do_not_fill():
    with pytest.raises(UserError, match="swap.queue=20 is not a multiple of batch=8"):
        build(replace(recipe("swav"), swap=SwAVConfig(queue=20)))


@pytest.mark.parametrize("kind", ["sgd", "lars"])
def test_swav_prototypes_stay_until_their_epoch_and_are_unit_rows(kind):
    whole = recipe("swav")
    whole = replace(whole, swap=replace(whole.swap, frozen_epochs=1.0), optimizer=replace(whole.optimizer, kind=kind))
    method = build(whole)
    optimizer = build_optimizer(whole.optimizer, method.encoder, fused=False)
    start = F.normalize(method.encoder.tail.weight.detach(), dim=1)
    for number in range(7):
        moment, views = TrainingProgress(number, 40, 5), [rows(N, 3, 10, 10, seed=10 * number + v) for v in (0, 1)]
        method.targets([views], moment)
        moved = (method.encoder.tail.weight - start).abs().max()
        assert moved < 1e-12 if number <= 5 else moved > 1e-6
        norms = method.encoder.tail.weight.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
        optimizer.zero_grad()
        method.compute_loss(dict(enumerate(method.encoder(views))), {}, moment).loss.backward()
        assert method.encoder.backbone[0].weight.grad.abs().max() > 0
        optimizer.step()


def test_mochi_equals_a_loop_over_mixed_negatives():
    mix, method = MoCHiConfig(hard=5, pairs=4, with_query=3, from_epoch=1), build(recipe("mochi"))
    q, k, n = unit(N, D, seed=1).requires_grad_(), unit(N, D, seed=2), F.normalize(method.bank.rows, dim=1)
    step = method.compute_loss({0: q}, {1: k}, LATE)
    u = philox.uniforms(0, LATE.step, np.arange(N), 0, 3 * 4 + 2 * 3, philox.MIX)
    total = 0.0
    for i in range(N):
        order = sorted(range(len(n)), key=lambda row: -(q[i].detach() @ n[row]).item())[:5]
        negatives = [*n, *(k[j] for j in range(N) if j != i)]
        for s in range(4):
            a, b = n[order[int(5 * u[i, s])]], n[order[int(5 * u[i, 4 + s])]]
            negatives.append(F.normalize(u[i, 8 + s] * a + (1 - u[i, 8 + s]) * b, dim=0))
        for s in range(3):
            a, beta = n[order[int(5 * u[i, 12 + s])]], 0.5 * u[i, 15 + s]
            negatives.append(F.normalize(beta * q[i].detach() + (1 - beta) * a, dim=0))
        positive = torch.exp(q[i] @ k[i] / 0.3)
        total = total - torch.log(positive / (positive + sum(torch.exp(q[i] @ h / 0.3) for h in negatives))) / N
    same(step.loss, total, [q])
    assert not mixed_negatives(q, n, mix, torch.from_numpy(u)).requires_grad


@pytest.mark.parametrize("in_batch", [True, False])
def test_mochi_is_moco_until_it_mixes_and_harder_then(in_batch):
    contrast = LossConfig(tau=0.3, in_batch_negatives=in_batch)
    mochi, moco = (build(replace(recipe(name), contrast=contrast)) for name in ("mochi", "moco"))
    games = {0: unit(N, D, seed=1)}, {1: unit(N, D, seed=2)}
    early, late = (mochi.compute_loss(*games, moment).loss for moment in (FIRST, LATE))
    assert early == moco.compute_loss(*games, FIRST).loss
    assert late > early + 0.1  # more columns in the same softmax
    mochi.mix = replace(mochi.mix, pairs=0, with_query=0)
    torch.testing.assert_close(mochi.compute_loss(*games, LATE).loss, early, rtol=0, atol=1e-10)


def test_mochi_mixes_anew_at_every_step_view_and_place_and_alike_after_a_restart():
    method = build(recipe("mochi"))
    first = method.uniforms(N, 0, 3)
    assert torch.equal(first, build(recipe("mochi")).uniforms(N, 0, 3))
    for other in (method.uniforms(N, 0, 4), method.uniforms(N, 1, 3), first.roll(1, dims=0)):
        assert (first != other).all()


@pytest.mark.parametrize("name", ["mochi", "byol"])
def test_no_gradient_reaches_the_key_encoder(name):
    method, views = build(recipe(name)), [rows(N, 3, 10, 10, seed=v) for v in (0, 1)]
    targets = method.targets([views], LATE)
    outputs = dict(zip(method.query_views, method.encoder([views[v] for v in method.query_views]), strict=True))
    method.compute_loss(outputs, targets, LATE).loss.backward()
    assert all(p.grad is not None for p in method.encoder.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.key_encoder.parameters())
    assert not any(key.requires_grad for key in targets.values())


def test_byols_key_encoder_has_no_predictor_and_its_momentum_rises_to_one():
    whole = recipe("byol")
    whole = replace(whole, encoder=replace(whole.encoder, key_momentum_to_one=True))
    method, views = build(whole), [rows(N, 3, 10, 10, seed=v) for v in (0, 1)]
    assert method.encoder.tail is not None is method.key_encoder.tail
    with torch.no_grad():
        for weight in method.encoder.parameters():
            weight.add_(1.0)
    start = method.key_encoder.head[0].weight.clone()
    for step, share in ((0, 0.1), (20, 0.05), (40, 0.0)):  # 1 - momentum: half a cosine from 0.1
        method.key_encoder.head[0].weight.copy_(start)
        method.targets([views], TrainingProgress(step, 40, 5))
        torch.testing.assert_close(method.key_encoder.head[0].weight, start + share)


@pytest.mark.parametrize("name", BASELINES)
def test_ranks_with_synced_norms_equal_one_process_with_the_whole_batch(name):
    whole = recipe(name)
    alone, answers = trained(whole, 12), run_ranks(trained, 2, whole, 12)
    close(alone, answers[0])
    assert all(torch.equal(answers[0][name], answers[1][name]) for name in answers[0] if "running" not in name)


@pytest.mark.parametrize("name", BASELINES)
def test_a_run_goes_on_from_its_state_bit_for_bit(name):
    whole, scaler = recipe(name), torch.amp.GradScaler("cpu", enabled=False)

    def go(method, optimizer, numbers: range) -> None:
        for number in numbers:
            views, moment = [rows(N, 3, 10, 10, seed=10 * number + v) for v in (0, 1)], TrainingProgress(number, 40, 5)
            optimizer.zero_grad()
            step = backward(method, method.encoder, [views], moment, scaler)
            optimizer.step()
            method.update(step, moment, 0.0)

    runs = [build(whole) for _ in range(2)]
    optimizers = [build_optimizer(whole.optimizer, method.encoder, fused=False) for method in runs]
    go(runs[0], optimizers[0], range(8))
    state = copy.deepcopy((runs[0].state_dict(), optimizers[0].state_dict()))
    go(runs[0], optimizers[0], range(8, 11))
    runs[1].load_state_dict(state[0])
    optimizers[1].load_state_dict(state[1])
    go(runs[1], optimizers[1], range(8, 11))
    ended, resumed = (method.state_dict() for method in runs)
    assert all(torch.equal(ended[key], resumed[key]) for key in ended)


@pytest.mark.parametrize("name", BASELINES)
def test_micro_batches_equal_split_norms(name):
    local = recipe(name)
    options = replace(local.encoder, batch_norm="local", key_batch_norm="local")
    local = replace(local, encoder=options)
    split_norms = trained(replace(local, encoder=replace(local.encoder, norm_splits=2)), 8)
    accumulated = trained(replace(local, compute=replace(local.compute, accumulate=2)), 8)
    close(split_norms, accumulated, but="running")
