"""The adversaries' SGD is torch's; rows stay unit length only where the recipe says so."""

from __future__ import annotations

import pytest
import torch

from adco.bank import Bank


def test_ascent_is_torch_sgd_on_the_negative_direction():
    bank = Bank(7, 4, sgd_momentum=0.9, weight_decay=1e-2, renormalize=False).double()
    twin = bank.rows.clone().requires_grad_()
    sgd = torch.optim.SGD([twin], lr=3.0, momentum=0.9, weight_decay=1e-2)
    for _ in range(4):
        direction = torch.randn(7, 4, dtype=torch.float64)
        twin.grad = -direction
        sgd.step()
        bank.ascend(direction, lr=3.0)
    torch.testing.assert_close(bank.rows, twin.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("renormalize", [True, False])
def test_rows_are_unit_after_a_step_only_when_renormalised(renormalize):
    bank = Bank(7, 4, sgd_momentum=0.9, weight_decay=0.0, renormalize=renormalize)
    bank.ascend(torch.randn(7, 4), lr=1.0)
    unit = torch.allclose(bank.rows.norm(dim=1), torch.ones(7), atol=1e-6)
    assert unit is renormalize


def test_filling_stops_at_the_last_row():
    bank = Bank(5, 2, 0.9, 0.0, False)
    keys = torch.arange(6.0).view(3, 2)
    assert bank.fill(keys, 0) == 3
    assert bank.fill(keys + 10, 3) == 5
    assert bank.rows.tolist() == [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13]]
