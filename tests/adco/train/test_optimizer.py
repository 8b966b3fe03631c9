"""Schedules at hand-worked steps; optimizers against torch and a loop written from the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adco.config.schema import OptimizerConfig
from adco.train.optimizer import build_optimizer, load_state, parameter_groups
from adco.utils.schedules import constant, cosine

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


def test_a_constant_rate_has_its_own_warm_up():
    rates = [constant(step=step, steps_per_epoch=2, epochs=9, lr=3.0, warmup_epochs=2, by="step") for step in range(6)]
    assert rates == pytest.approx([0.75, 1.5, 2.25, 3.0, 3.0, 3.0])


class Small(nn.Module):
    """A layer, a norm and a tail, as an encoder has them."""

    def __init__(self):
        super().__init__()
        self.head, self.norm, self.tail = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)


def test_groups_decay_weights_alone_where_asked_and_keep_the_predictors_rate():
    def names(**options) -> list[tuple]:
        small = Small()
        named = {id(p): name for name, p in small.named_parameters()}
        groups = parameter_groups(OptimizerConfig(**options), small)
        return [(g["constant_lr"], g.get("weight_decay"), sorted(named[id(p)] for p in g["params"])) for g in groups]

    assert [len(group[2]) for group in names()] == [6]  # SGD as released: everything alike
    vectors = ["head.bias", "norm.bias", "norm.weight", "tail.bias"]
    assert names(kind="lars") == [(False, None, ["head.weight", "tail.weight"]), (False, 0.0, vectors)]
    assert names(weight_decay_all=False) == names(kind="lars")
    apart = names(constant_predictor_lr=True)
    assert apart == [
        (False, None, ["head.bias", "head.weight", "norm.bias", "norm.weight"]),
        (True, None, ["tail.bias", "tail.weight"]),
    ]


@pytest.mark.parametrize("kind", ["sgd", "lars"])
def test_a_loaded_buffer_is_laid_out_as_its_parameter(kind):
    layer = nn.Conv2d(3, 4, 3)
    layer.weight.grad, layer.bias.grad = torch.randn_like(layer.weight), torch.randn_like(layer.bias)
    solver = build_optimizer(OptimizerConfig(kind=kind), layer, fused=False)
    solver.step()
    (name,) = solver.state[layer.weight]
    saved, there = solver.state_dict(), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    other = build_optimizer(OptimizerConfig(kind=kind), there, fused=False)
    load_state(other, saved)
    found = other.state[there.weight][name]
    assert found.stride() == there.weight.stride() != layer.weight.stride()
    assert torch.equal(found, solver.state[layer.weight][name])
    assert other.param_groups[0]["lr"] == solver.param_groups[0]["lr"]


@pytest.mark.parametrize("kind", ["sgd", "lars"])
@pytest.mark.parametrize("fused", [True, False])
def test_steps_equal_a_loop_written_from_the_definition(kind, fused):
    torch.manual_seed(0)
    small, options = Small().double(), OptimizerConfig(kind=kind, weight_decay=0.01, sgd_momentum=0.9, trust=0.02)
    weights = {name: p.detach().clone() for name, p in small.named_parameters()}
    velocities = {name: torch.zeros_like(p) for name, p in weights.items()}
    solver = build_optimizer(options, small, fused)
    for group in solver.param_groups:
        group["lr"] = 0.1
    for _ in range(3):
        for name, p in small.named_parameters():
            g = p.grad = torch.randn_like(p)
            w, layer = weights[name], p.ndim > 1
            if layer or kind == "sgd":
                g = g + 0.01 * w
            scale = 0.02 * w.norm() / g.norm() if layer and kind == "lars" else 1.0
            velocities[name] = 0.9 * velocities[name] + scale * g
            weights[name] = w - 0.1 * velocities[name]
        solver.step()
    for name, p in small.named_parameters():
        torch.testing.assert_close(p.detach(), weights[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_a_skipped_first_step_leaves_no_trace(fused):
    small = Small()
    solver, scaler = build_optimizer(OptimizerConfig(), small, fused), torch.amp.GradScaler("cpu")
    for size in (1e38, 1.0):  # the first gradient overflows when it is scaled
        solver.zero_grad()
        scaler.scale(size * sum(p.sum() for p in small.parameters())).backward()
        scaler.step(solver)
        scaler.update()
    for p in small.parameters():
        expected = 1 + OptimizerConfig().weight_decay * p.detach()
        torch.testing.assert_close(solver.state[p]["momentum_buffer"], expected, rtol=1e-4, atol=1e-4)


def test_constant_is_constant():
    assert {constant(step=step, steps_per_epoch=1, epochs=2, lr=3.0, final_lr=0.0) for step in range(5)} == {3.0}
