"""The contrastive game: vectorised equals a loop written from the paper, closed form equals autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from adco.contrast import Pair, adversarial_contrast, make_pairs

N, D, K = 5, 6, 9
TAU, TAU_BANK = 0.12, 0.03


@pytest.fixture
def game():
    generator = torch.Generator().manual_seed(0)
    q, k = (
        {view: F.normalize(torch.randn(N, D, generator=generator, dtype=torch.float64), dim=1) for view in (0, 1)}
        for _ in range(2)
    )
    return q, k, 1.7 * torch.randn(K, D, generator=generator, dtype=torch.float64)


def loop_loss(q, k, pairs, bank, tau, in_batch):
    """Eq. (1) one logit at a time, the mean over queries, weighted over pairs."""
    total = 0.0
    for pair in pairs:
        for i in range(N):
            negatives = [row / row.norm() for row in bank]
            if in_batch:
                negatives += [k[pair.key][j] for j in range(N) if j != i]
            positive = torch.exp(q[pair.query][i] @ k[pair.key][i] / tau)
            rest = sum(torch.exp(q[pair.query][i] @ n / tau) for n in negatives)
            total = total - pair.weight * torch.log(positive / (positive + rest)) / N
    return total


PAIRS = [make_pairs(2, False), make_pairs(2, True), (Pair(0, 1, 0.3), Pair(1, 1, 2.0))]


@pytest.mark.parametrize("pairs", PAIRS, ids=["single", "symmetric", "weighted"])
@pytest.mark.parametrize("in_batch", [True, False])
def test_loss_and_its_gradient_equal_a_naive_loop(game, pairs, in_batch):
    q, k, bank = game
    for view in q:
        q[view].requires_grad_()
    ours = adversarial_contrast(q, k, pairs, bank, TAU, TAU_BANK, in_batch)
    naive = loop_loss(q, k, pairs, bank, TAU, in_batch)
    torch.testing.assert_close(ours.loss, naive, rtol=1e-12, atol=1e-12)
    used = [q[view] for view in sorted({pair.query for pair in pairs})]
    for a, b in zip(torch.autograd.grad(ours.loss, used), torch.autograd.grad(naive, used), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pairs", PAIRS, ids=["single", "symmetric", "weighted"])
@pytest.mark.parametrize("in_batch", [True, False])
def test_the_banks_direction_is_the_gradient_of_the_loss_at_its_temperature(game, pairs, in_batch):
    q, k, bank = game
    direction = adversarial_contrast(q, k, pairs, bank, TAU, TAU_BANK, in_batch).ascent.whole()
    bank.requires_grad_()
    expected = torch.autograd.grad(loop_loss(q, k, pairs, bank, TAU_BANK, in_batch), bank)[0]
    torch.testing.assert_close(direction, expected, rtol=1e-10, atol=1e-12)
    assert (direction * bank).sum(dim=1).abs().max() < 1e-12  # a step along it turns a row, to first order


def test_ascent_raises_the_loss_that_the_encoder_lowers(game):
    q, k, bank = game
    before = adversarial_contrast(q, k, make_pairs(2, False), bank, TAU_BANK, TAU_BANK, False)
    after = adversarial_contrast(
        q, k, make_pairs(2, False), bank + 0.01 * before.ascent.whole(), TAU_BANK, TAU_BANK, False
    )
    assert after.loss > before.loss


def test_accuracy_counts_queries_whose_key_is_the_nearest():
    q = {0: torch.eye(4)}
    k = {1: torch.eye(4)[[0, 1, 3, 2]]}  # two of four queries meet their own key
    result = adversarial_contrast(q, k, make_pairs(2, False), -torch.eye(4), TAU, TAU_BANK, True)
    assert result.accuracy.item() == 0.5
    assert math.isclose(result.loss.item(), result.cross_entropies.item(), rel_tol=1e-6)


def test_pairs_of_each_variant():
    assert make_pairs(2, False) == (Pair(0, 1, 1.0),)
    assert make_pairs(2, True) == (Pair(0, 1, 0.5), Pair(1, 0, 0.5))
    assert make_pairs(6, False) == tuple(Pair(query, 5, 1.0) for query in range(5))
    multi = make_pairs(4, True)  # two directions, each with every other view as a query
    assert multi == (*(Pair(q, 3, 0.5) for q in (0, 1, 2)), *(Pair(q, 0, 0.5) for q in (1, 2, 3)))
