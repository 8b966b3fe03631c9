"""Schedules at hand-worked steps."""

from __future__ import annotations

import math

import pytest

from adco.optim import constant, cosine

RUN = {"steps_per_epoch": 10, "epochs": 4, "lr": 0.03, "final_lr": 0.0006}


@pytest.mark.parametrize("step", [0, 9, 10, 25, 39])
def test_by_epoch_is_the_released_formula(step):
    expected = 0.0006 + 0.5 * (1 + math.cos(math.pi * (step // 10) / 4)) * (0.03 - 0.0006)
    assert cosine(step, **RUN) == pytest.approx(expected, rel=1e-12)


def test_by_step_moves_at_every_step_from_lr_towards_the_floor():
    rates = [cosine(step, **RUN, by="step") for step in range(41)]
    assert rates[0] == 0.03
    assert rates[20] == pytest.approx((0.03 + 0.0006) / 2)
    assert rates[40] == pytest.approx(0.0006)
    assert all(a > b for a, b in zip(rates, rates[1:], strict=False))


def test_warm_up_is_linear_and_then_the_cosine_starts_from_the_top():
    rates = [cosine(step, **RUN, warmup_epochs=1, by="step") for step in range(12)]
    assert rates[:10] == pytest.approx([0.003 * (step + 1) for step in range(10)])
    assert rates[10] == 0.03
    assert [cosine(step, **RUN, warmup_epochs=2) for step in (0, 10, 20)] == pytest.approx([0.015, 0.03, 0.03])


def test_a_run_may_be_all_warm_up():
    rates = [cosine(step, 2, epochs=1, lr=0.1, final_lr=0.0, warmup_epochs=1, by="step") for step in range(3)]
    assert rates == pytest.approx([0.05, 0.1, 0.1])


def test_constant_is_constant():
    assert {constant(step=step, steps_per_epoch=1, epochs=2, lr=3.0, final_lr=0.0) for step in range(5)} == {3.0}
