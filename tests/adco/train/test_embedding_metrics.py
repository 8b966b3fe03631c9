"""Each reading against a naive loop and against cases worked by hand; planted faults are put into words, once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adco.train import embedding_metrics
from adco.train.embedding_metrics import DEAD_AFTER, PATIENCE, EmbeddingMetrics, HealthMonitor
from adco.utils import distributed
from tests.ranks import run_ranks

TAU = 0.1


def unit(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def naive_softmax(q, n, tau):
    """p[i][k] as plain numbers."""
    rows = []
    for query in q.double().tolist():
        e = [math.exp(sum(a * b for a, b in zip(query, row, strict=True)) / tau) for row in n.double().tolist()]
        rows.append([x / sum(e) for x in e])
    return rows


def test_alignment_is_the_mean_squared_distance():
    q, k = unit(5, 3), unit(5, 3, 1)
    naive = (
        sum(sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) for pair in zip(q.tolist(), k.tolist(), strict=True))
        / 5
    )
    assert embedding_metrics.alignment(q, k).item() == pytest.approx(naive, rel=1e-5)
    assert embedding_metrics.alignment(q, q) == 0
    assert embedding_metrics.alignment(q, -q).item() == pytest.approx(4)


def test_uniformity_is_the_log_mean_potential_over_pairs():
    q = unit(6, 3)
    terms = [math.exp(-2 * math.dist(q[i].tolist(), q[j].tolist()) ** 2) for i in range(6) for j in range(i)]
    assert embedding_metrics.uniformity(q).item() == pytest.approx(math.log(sum(terms) / len(terms)), rel=1e-5)
    assert embedding_metrics.uniformity(unit(1, 4).repeat(8, 1)).item() == pytest.approx(0, abs=1e-5)
    assert embedding_metrics.uniformity(torch.eye(8)).item() == pytest.approx(
        -4, rel=1e-5
    )  # all pairs at a right angle


def test_effective_rank_counts_the_directions_in_use():
    assert embedding_metrics.effective_rank(torch.eye(8)).item() == pytest.approx(8, rel=1e-5)
    assert embedding_metrics.effective_rank(torch.eye(8)[[0, 1, 2] * 10]).item() == pytest.approx(3, rel=1e-4)
    assert embedding_metrics.effective_rank(unit(1, 8).repeat(20, 1)).item() == pytest.approx(1, abs=1e-3)
    p = [3 / 4, 1 / 4]  # singular values 3 and 1
    by_hand = math.exp(-sum(x * math.log(x) for x in p))
    assert embedding_metrics.effective_rank(torch.diag(torch.tensor([3.0, 1.0]))).item() == pytest.approx(
        by_hand, rel=1e-5
    )


def test_spread_is_one_on_the_sphere_and_nought_at_a_point():
    assert embedding_metrics.spread(unit(4000, 32)).item() == pytest.approx(1, abs=0.01)
    assert embedding_metrics.spread(unit(1, 32).repeat(50, 1)).item() == pytest.approx(0, abs=1e-4)
    q = F.normalize(torch.ones(32) + 0.5 * torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    mean_cosine = (q @ q.T).mean().item()
    assert embedding_metrics.spread(q).item() == pytest.approx(math.sqrt(1 - mean_cosine), abs=0.02)


def test_use_of_the_bank_equals_a_naive_softmax_and_does_not_depend_on_chunks(monkeypatch):
    q, n = unit(7, 5), unit(23, 5, 1)
    p = naive_softmax(q, n, TAU)
    for chunk in (2048, 4):
        monkeypatch.setattr(embedding_metrics, "CHUNK_ROWS", chunk)
        used = embedding_metrics.use_of_bank(q, n, TAU)
        assert used.mass.tolist() == pytest.approx([sum(column) / 7 for column in zip(*p, strict=True)], rel=1e-4)
        assert used.peak.tolist() == pytest.approx([max(column) for column in zip(*p, strict=True)], rel=1e-4)
        assert used.nearest.tolist() == [row.index(max(row)) for row in p]


def test_use_of_the_bank_survives_a_temperature_whose_exponentials_overflow():
    used = embedding_metrics.use_of_bank(unit(4, 8), unit(9, 8, 1), 0.001)
    assert used.mass.sum().item() == pytest.approx(1, rel=1e-5)


def test_bank_entropy():
    q = unit(1, 4).repeat(3, 1)
    assert embedding_metrics.bank_entropy(q, unit(1, 4, 1).repeat(16, 1), TAU).item() == pytest.approx(
        1, rel=1e-5
    )  # all alike
    one = torch.cat([q[:1], (-q[:1]).repeat(15, 1)])
    assert embedding_metrics.bank_entropy(q, one, 0.01).item() == pytest.approx(0, abs=1e-5)  # one takes all
    axes = torch.eye(16)
    assert embedding_metrics.bank_entropy(axes[:4], axes, 0.01).item() == pytest.approx(
        math.log(4) / math.log(16), rel=1e-4
    )
    q, n = unit(7, 5), unit(23, 5, 1)
    mass = [sum(column) / 7 for column in zip(*naive_softmax(q, n, TAU), strict=True)]
    naive = -sum(m * math.log(m) for m in mass) / math.log(23)
    assert embedding_metrics.bank_entropy(q, n, TAU).item() == pytest.approx(naive, rel=1e-5)


def test_the_nearest_share_is_that_of_the_most_popular_row():
    assert embedding_metrics.nearest_share(torch.tensor([4, 4, 2, 4])).item() == 0.75


def test_a_row_is_dead_after_as_many_idle_evaluations_and_alive_with_one_query():
    axes, see = torch.eye(8), EmbeddingMetrics()
    for evaluation in range(DEAD_AFTER + 2):
        queries = axes[[0, 1, 2, 2]]
        if evaluation == 1:
            queries = axes[[0, 1, 2, 3]]  # row 3 is of use once, and dies one evaluation later than rows 4 to 7
        share = see(queries, queries, axes, 0.01)["bank_dead_share"]
        assert share == {DEAD_AFTER - 1: 4 / 8, DEAD_AFTER: 4 / 8, DEAD_AFTER + 1: 5 / 8}.get(evaluation, 0)
    assert see(axes[4:], axes[4:], axes, 0.01)["bank_dead_share"] == 1 / 8  # 4 to 7 are back, 3 is not


def test_a_uniform_bank_is_not_called_dead_at_a_sharp_temperature():
    """Where the mean over queries would say so: most rows take less than a tenth of their share of the mean."""
    see, n = EmbeddingMetrics(), unit(4096, 128, 9)
    for step in range(DEAD_AFTER):
        q = unit(64, 128, step)
        found = see(q, q, n, 0.02)
    assert (embedding_metrics.use_of_bank(q, n, 0.02).mass < 0.1 / 4096).float().mean() > 0.3
    assert found["bank_dead_share"] < 0.01


def test_readings_of_raw_rows_are_those_of_unit_rows_and_nothing_is_changed():
    q, k, n = unit(16, 8), unit(16, 8, 1), unit(40, 8, 2)
    raw = n * torch.rand(40, 1).add(0.1)
    before = raw.clone()
    assert EmbeddingMetrics()(q, k, raw, TAU) == pytest.approx(EmbeddingMetrics()(q, k, n, TAU), rel=1e-4)
    assert torch.equal(raw, before)
    assert "bank_entropy" not in EmbeddingMetrics()(q, k, None, TAU)


def test_an_embedding_that_is_not_finite_has_no_readings():
    q = unit(8, 4)
    q[3, 1] = math.nan
    assert EmbeddingMetrics()(q, q, None, TAU) == {}


def test_a_large_batch_is_looked_at_through_evenly_spaced_queries(monkeypatch):
    monkeypatch.setattr(embedding_metrics, "MOST_ROWS", 8)
    q = torch.eye(8)[torch.arange(16) // 2]
    assert EmbeddingMetrics()(q, q, None, TAU)["effective_rank"] == pytest.approx(8, rel=1e-4)


def seen(sharded: bool, evaluations: int = DEAD_AFTER + 1) -> dict[str, float]:
    """The last readings of the same batch and bank, however many ranks share them."""
    q, k, rows = unit(12, 8), unit(12, 8, 1), 3 * unit(30, 8, 2)
    see, mine = EmbeddingMetrics(), distributed.local_shard(rows) if sharded else rows
    for _ in range(evaluations):
        found = see(distributed.local_shard(q), distributed.local_shard(k), mine, 0.03, sharded)
    return found


@pytest.mark.parametrize("sharded", [False, True])
def test_two_ranks_read_what_one_process_reads(sharded):
    one, found = seen(False), run_ranks(seen, 2, sharded)
    assert 0 < one["bank_dead_share"] < 1
    assert found[0] == found[1]
    assert found[0] == pytest.approx(one, rel=1e-4)


def trained(contrast: bool, steps: int = 300) -> list[str]:
    """What is said while a small network learns to bring two noisy views of a point together, with negatives or not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    see, watch, said = EmbeddingMetrics(), HealthMonitor(), []
    for step in range(steps):
        points = torch.randn(64, 16)
        q, k = (F.normalize(network(points + 0.3 * torch.randn_like(points)), dim=1) for _ in range(2))
        loss = F.cross_entropy(q @ k.T / 0.2, torch.arange(64)) if contrast else embedding_metrics.alignment(q, k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            said += watch(see(q.detach(), k.detach(), None, TAU))
    return said


def test_a_network_that_collapses_is_named_once_and_one_that_does_not_is_not():
    said = trained(contrast=False)
    assert len(said) == 1
    assert said[0].startswith("warning: the embedding collapses: effective rank ")
    assert trained(contrast=True) == []


def readings(**changes: float) -> dict[str, float]:
    fine = {"effective_rank": 40.0, "effective_rank_share": 0.3, "embedding_spread": 0.8}
    return fine | {"bank_nearest_share": 0.05, "bank_dead_share": 0.1, "loader_wait_share": 0.02} | changes


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"effective_rank_share": 0.03, "effective_rank": 3.9}, "effective rank 3.9, 3% of what it could be"),
        ({"embedding_spread": 0.05}, "spread 0.05"),
        ({"bank_nearest_share": 0.7}, "70% of the queries"),
        ({"bank_dead_share": 0.95}, "95% of the bank's rows"),
        ({"loader_wait_share": 0.42}, "42% of the time goes into waiting"),
    ],
)
def test_a_fault_is_said_once_when_it_lasts_and_its_end_too(fault, words):
    watch = HealthMonitor()
    said = [watch(readings(**(fault if 5 <= step < 20 else {}))) for step in range(40)]
    spoken = {step: texts for step, texts in enumerate(said) if texts}
    assert list(spoken) == [5 + PATIENCE - 1, 20 + PATIENCE - 1]
    (warning,), (relief,) = spoken.values()
    assert words in warning
    assert relief.endswith(": well again")


def test_a_passing_fault_is_not_said_and_readings_that_are_absent_change_nothing():
    watch = HealthMonitor()
    for step in range(19):
        assert watch(readings(loader_wait_share=0.9 if step % PATIENCE else 0.0)) == []
    for step in range(PATIENCE):
        said = watch({"loader_wait_share": 0.9})
        assert watch({"knn_top1": 50.0}) == []
        assert bool(said) == (step == PATIENCE - 1)


def test_a_knn_score_that_falls_far_below_its_best_is_said():
    watch = HealthMonitor()
    said = [text for score in (20, 50, 45, 38, 39, 37) for text in watch({"knn_top1": float(score)})]
    assert len(said) == 1
    assert "fell to 37.0% from 50.0%" in said[0]
