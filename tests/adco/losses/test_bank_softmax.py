"""Losses against the bank: vectorised equals a loop written from the paper, closed form equals autograd."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from adco.losses import bank_softmax
from adco.losses.adco import adversarial_contrast
from adco.losses.bank_gradient import Workspace
from adco.losses.caco import cooperative_contrast
from adco.losses.pairs import Pair, make_pairs

N, D, K = 5, 6, 9
TAU, TAU_BANK = 0.12, 0.03


@pytest.fixture
def embeddings():
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
def test_loss_and_its_gradient_equal_a_naive_loop(embeddings, pairs, in_batch):
    q, k, bank = embeddings
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
def test_the_banks_direction_is_the_gradient_of_the_loss_at_its_temperature(embeddings, pairs, in_batch):
    q, k, bank = embeddings
    direction = adversarial_contrast(q, k, pairs, bank, TAU, TAU_BANK, in_batch).bank_gradient.whole()
    bank.requires_grad_()
    expected = torch.autograd.grad(loop_loss(q, k, pairs, bank, TAU_BANK, in_batch), bank)[0]
    torch.testing.assert_close(direction, expected, rtol=1e-10, atol=1e-12)
    assert (direction * bank).sum(dim=1).abs().max() < 1e-12  # a step along it turns a row, to first order


def test_ascent_raises_the_loss_that_the_encoder_lowers(embeddings):
    q, k, bank = embeddings
    before = adversarial_contrast(q, k, make_pairs(2, False), bank, TAU_BANK, TAU_BANK, False)
    after = adversarial_contrast(
        q, k, make_pairs(2, False), bank + 0.01 * before.bank_gradient.whole(), TAU_BANK, TAU_BANK, False
    )
    assert after.loss > before.loss


def test_accuracy_counts_queries_whose_key_is_the_nearest():
    q = {0: torch.eye(4)}
    k = {1: torch.eye(4)[[0, 1, 3, 2]]}  # two of four queries are nearest to their own key
    result = adversarial_contrast(q, k, make_pairs(2, False), -torch.eye(4), TAU, TAU_BANK, True)
    assert result.accuracy.item() == 0.5
    assert math.isclose(result.loss.item(), result.cross_entropies.item(), rel_tol=1e-6)


def test_pairs_of_each_variant():
    assert make_pairs(2, False) == (Pair(0, 1, 1.0),)
    assert make_pairs(2, True) == (Pair(0, 1, 0.5), Pair(1, 0, 0.5))
    assert make_pairs(6, False) == tuple(Pair(query, 5, 1.0) for query in range(5))
    multi = make_pairs(4, True)  # two directions, each with every other view as a query
    assert multi == (*(Pair(q, 3, 0.5) for q in (0, 1, 2)), *(Pair(q, 0, 0.5) for q in (1, 2, 3)))


def everything(embeddings, contrastive_loss) -> list[torch.Tensor]:
    """Loss, the queries' gradients and the bank's direction of one evaluation."""
    q, k, bank = embeddings
    queries = {view: rows.clone().requires_grad_() for view, rows in q.items()}
    result = contrastive_loss(queries, k, bank)
    result.loss.backward()
    return [result.loss.detach(), *(rows.grad for rows in queries.values()), result.bank_gradient.whole()]


LOSSES = {
    "adco": lambda q, k, bank: adversarial_contrast(q, k, make_pairs(2, True), bank, TAU, TAU_BANK, True),
    "J": lambda q, k, bank: adversarial_contrast(q, k, make_pairs(2, True), bank, TAU, TAU_BANK, True, "J"),
    "caco": lambda q, k, bank: cooperative_contrast(q, k, (Pair(0, 1, 1.0), Pair(1, 0, 1.0)), bank, TAU, TAU_BANK),
}


@pytest.mark.parametrize("contrastive_loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("rows", [1, 4, 8])
def test_chunks_of_the_bank_are_the_bank(embeddings, contrastive_loss, rows):
    whole = everything(embeddings, contrastive_loss)
    with mock.patch.dict(bank_softmax.BLOCK, cpu=2 * N * rows):  # K = 9: chunks of equal size, and a smaller last one
        for a, b in zip(whole, everything(embeddings, contrastive_loss), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("contrastive_loss", LOSSES.values(), ids=LOSSES)
def test_another_evaluation_in_between_does_not_touch_a_banks_gradient(embeddings, contrastive_loss):
    q, k, bank = embeddings
    first = contrastive_loss(q, k, bank)
    expected = first.bank_gradient.whole()
    contrastive_loss(k, q, bank.flip(0))  # with memory of its own
    assert torch.equal(first.bank_gradient.whole(), expected)


def test_a_gradient_whose_memory_was_used_again_is_refused(embeddings):
    q, k, bank = embeddings
    workspace = Workspace()
    first, second = (
        adversarial_contrast(q, k, make_pairs(2, True), bank, TAU, TAU_BANK, True, workspace=workspace)
        for _ in range(2)
    )
    with pytest.raises(RuntimeError, match="stale"):
        first.bank_gradient.whole()
    alone = adversarial_contrast(q, k, make_pairs(2, True), bank, TAU, TAU_BANK, True)
    assert torch.equal(second.bank_gradient.whole(), alone.bank_gradient.whole())
    chunks = iter(second.bank_gradient)
    adversarial_contrast(q, k, make_pairs(2, True), bank, TAU, None, True, workspace=workspace)  # a queue's, too
    with pytest.raises(RuntimeError, match="stale"):
        next(chunks)


def test_a_workspace_uses_its_memory_again():
    workspace, like = Workspace(), torch.zeros(1, dtype=torch.float64)
    first = workspace.take(100, like)
    assert workspace.take(40, like).data_ptr() == first.data_ptr()
    assert workspace.take(40, like.float()).dtype == torch.float32
    assert workspace.evaluations == 3
    assert Workspace().take(100, like).data_ptr() != first.data_ptr()


@pytest.mark.parametrize("tau", [0.12, 0.02, 0.005])
def test_float32_is_close_to_float64_at_any_temperature(embeddings, tau):
    def contrastive_loss(q, k, bank):
        return adversarial_contrast(q, k, make_pairs(2, True), bank, tau, tau, True)

    half = [{view: rows.float() for view, rows in part.items()} for part in embeddings[:2]]
    for a, b in zip(
        everything(embeddings, contrastive_loss),
        everything((*half, embeddings[2].float()), contrastive_loss),
        strict=True,
    ):
        assert b.dtype in (torch.float32, torch.float64)
        assert b.isfinite().all()
        torch.testing.assert_close(a, b.double(), rtol=2e-5, atol=2e-6 * a.abs().max().item())


def test_a_bank_row_that_is_a_positive_is_pulled_to_its_query_as_the_loss_asks():
    """CaCo: the direction is minus the gradient of the loss through the positives, plus that through the negatives."""
    generator = torch.Generator().manual_seed(2)
    q, k = (F.normalize(torch.randn(N, D, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    bank = torch.randn(K, D, generator=generator, dtype=torch.float64)
    pairs = (Pair(0, 1, 1.0),)
    found = cooperative_contrast({0: q}, {1: k}, pairs, bank, TAU, TAU_BANK).bank_gradient.whole()
    label = (k @ F.normalize(bank, dim=1).T).argmax(dim=1)
    as_positive, as_negative = bank.clone().requires_grad_(), bank.clone().requires_grad_()
    own = torch.zeros(N, K, dtype=torch.bool).scatter_(1, label.unsqueeze(1), True)
    cosines = torch.where(own, q @ F.normalize(as_positive, dim=1).T, q @ F.normalize(as_negative, dim=1).T)
    F.cross_entropy(cosines / TAU_BANK, label).backward()
    torch.testing.assert_close(found, as_negative.grad - as_positive.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pairs", PAIRS, ids=["single", "symmetric", "weighted"])
def test_the_direction_of_j_is_the_gradient_of_j(embeddings, pairs):
    """Section 4.1: J = tau sum_k log sum_i exp(q_i.n_k / tau), for each pair's queries, weighted."""
    q, k, bank = embeddings
    found = adversarial_contrast(q, k, pairs, bank, TAU, TAU_BANK, True, "J").bank_gradient.whole()
    bank.requires_grad_()
    logits = {view: rows @ F.normalize(bank, dim=1).T / TAU_BANK for view, rows in q.items()}
    j = sum(pair.weight * TAU_BANK * logits[pair.query].logsumexp(dim=0).sum() for pair in pairs)
    torch.testing.assert_close(found, torch.autograd.grad(j, bank)[0], rtol=1e-10, atol=1e-12)
