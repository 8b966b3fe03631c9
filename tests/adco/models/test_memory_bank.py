"""The adversaries' SGD is torch's; rows stay unit length only where the recipe says so."""

from __future__ import annotations

import pytest
import torch

from adco.config.schema import BankConfig as Options
from adco.models.memory_bank import MemoryBank
from tests.ranks import run_ranks


def test_ascent_is_torch_sgd_on_the_negative_direction():
    bank = MemoryBank(Options(7, sgd_momentum=0.9, weight_decay=1e-2), dim=4).double()
    twin = bank.rows.clone().requires_grad_()
    sgd = torch.optim.SGD([twin], lr=3.0, momentum=0.9, weight_decay=1e-2)
    for _ in range(4):
        direction = torch.randn(7, 4, dtype=torch.float64)
        twin.grad = -direction
        sgd.step()
        bank.sgd_ascent_step([(slice(0, 3), direction[:3]), (slice(3, 7), direction[3:])], lr=3.0)
    torch.testing.assert_close(bank.rows, twin.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("renormalize", [True, False])
def test_rows_are_unit_after_a_step_only_when_renormalised(renormalize):
    bank = MemoryBank(Options(7, weight_decay=0.0, renormalize=renormalize), dim=4)
    bank.sgd_ascent_step([(slice(None), torch.randn(7, 4))], lr=1.0)
    unit = torch.allclose(bank.rows.norm(dim=1), torch.ones(7), atol=1e-6)
    assert unit is renormalize


def test_filling_stops_at_the_last_row():
    bank = MemoryBank(Options(5), dim=2)
    keys = torch.arange(6.0).view(3, 2)
    assert bank.fill(keys, 0) == 3
    assert bank.fill(keys + 10, 3) == 5
    assert bank.rows.tolist() == [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13]]


def test_a_queue_overwrites_its_oldest_rows():
    queue = MemoryBank(Options(5), dim=1)
    for batches, value in enumerate((1.0, 2.0, 3.0)):
        queue.enqueue(torch.full((2, 1), value), batches)
    assert queue.rows.flatten().tolist()[:4] == [3, 1, 2, 2]  # the third pair wraps around
    assert queue.rows[4] == 3


def queued(placement: str) -> tuple[int, dict[str, torch.Tensor]]:
    """Three steps of a queue and one of SGD; the rows this rank holds and the state of the whole."""
    torch.manual_seed(0)
    bank = MemoryBank(Options(8, placement=placement), dim=2)
    for step in range(3):
        bank.enqueue(torch.arange(6.0).view(3, 2) + 10 * step, step)
    whole = torch.linspace(-1, 1, 16).view(8, 2)
    bank.sgd_ascent_step([(slice(None), bank._local(whole))], lr=0.5)
    state = bank.state_dict()
    again = MemoryBank(Options(8, placement=placement), dim=2)
    again.load_state_dict(state)
    assert torch.equal(again.rows, bank.rows)
    assert torch.equal(again.velocity, bank.velocity)
    return len(bank.rows), state


def test_a_sharded_bank_keeps_a_part_and_its_state_is_the_whole():
    rows, alone = queued("auto")
    assert rows == 8
    for placement, held in (("sharded", 4), ("auto", 4), ("replicated", 8)):
        for rows, state in run_ranks(queued, 2, placement):
            assert rows == held
            assert all(torch.equal(state[name], alone[name]) for name in alone)
