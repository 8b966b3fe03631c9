"""Fewer GPUs: the linear rule equals detectron2's, accumulation equals one large batch, every change is reported."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

import detection  # noqa: F401  (patches before detectron2)

# isort: split
from detectron2.engine import DefaultTrainer

from adco.utils.errors import UserError
from detection.batch_scaling import describe, plan
from detection.config import load_config
from detection.gradient_accumulation import accumulated_step
from detection.trainer import pin_memory, precise_bn_settings, speed
from tests import ROOT

CONFIGS = ROOT / "detection" / "configs"
VOC, COCO = "pascal_voc_R_50_C4_24k_adco", "coco_R_50_FPN_2x_adco"


def planned(workers, *overrides, name=VOC, **options):
    file = str(CONFIGS / f"{name}.yaml")
    cfg = load_config(file, overrides)
    return cfg, plan(cfg, load_config(file, []), workers, **options)


def test_one_gpu_by_the_linear_rule_in_numbers():
    cfg, batch_plan = planned(1)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (2, 0.0025)
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (192000, (144000, 176000), 800)
    assert (batch_plan.rule, batch_plan.batch, batch_plan.passes, batch_plan.images_per_pass) == ("linear", 2, 1, 2)
    printed = "\n".join(describe(batch_plan))
    assert "SOLVER.BASE_LR 0.02 -> 0.0025" in printed
    assert "SOLVER.STEPS (18000, 22000) -> (144000, 176000)" in printed


@pytest.mark.parametrize("name", [VOC, COCO, "smoke_voc_R_18_C4"])
@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_the_rule_is_detectron2s_own_which_does_not_apply_it_twice(name, workers):
    cfg, _ = planned(workers, name=name)
    file = str(CONFIGS / f"{name}.yaml")
    assert cfg == DefaultTrainer.auto_scale_workers(load_config(file, []), workers)
    assert cfg == DefaultTrainer.auto_scale_workers(cfg, workers)


def test_the_recipes_own_gpus_change_nothing():
    cfg, batch_plan = planned(8)
    assert (batch_plan.rule, batch_plan.differences, batch_plan.passes) == ("reference", (), 1)
    assert cfg == load_config(str(CONFIGS / f"{VOC}.yaml"), [])


@pytest.mark.parametrize(("images_per_gpu", "passes"), [(None, 8), (2, 8), (3, 8), (4, 4), (16, 1), (64, 1), (1, 16)])
def test_one_gpu_keeps_the_batch_by_accumulation(images_per_gpu, passes):
    cfg, batch_plan = planned(1, batch=16, images_per_gpu=images_per_gpu)
    assert (batch_plan.rule, batch_plan.differences, batch_plan.passes) == ("reference", (), passes)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (16, 0.02, 24000)
    assert batch_plan.images_per_pass * passes == 16
    assert any("accumulated" in line for line in describe(batch_plan)) == (passes > 1)


def test_another_batch_scales_by_its_ratio():
    cfg, batch_plan = planned(2, batch=8, images_per_gpu=4)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, batch_plan.passes, batch_plan.workers) == (0.01, 48000, 1, 2)


@pytest.mark.parametrize(
    ("workers", "overrides", "says"),
    [
        (1, ("SOLVER.IMS_PER_BATCH", "4"), "another training"),
        (8, ("SOLVER.IMS_PER_BATCH", "32"), "another training"),
        (1, ("SOLVER.MAX_ITER", "100"), "SOLVER.MAX_ITER is overridden while"),
        (4, ("SOLVER.BASE_LR", "0.1"), "SOLVER.BASE_LR is overridden while"),
    ],
)
def test_silently_different_training_is_refused(workers, overrides, says):
    with pytest.raises(UserError, match=f"{says}.*--as-given"):
        planned(workers, *overrides)


def test_as_given_is_literal_and_says_what_differs():
    cfg, batch_plan = planned(1, "SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.1", as_given=True)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (4, 0.1, 24000)
    assert (batch_plan.rule, batch_plan.passes) == ("as given", 1)
    assert batch_plan.differences == ("SOLVER.IMS_PER_BATCH 16 -> 4", "SOLVER.BASE_LR 0.02 -> 0.1")


def test_overrides_of_an_unscaled_recipe_are_reported_too():
    _, batch_plan = planned(8, "SOLVER.MAX_ITER", "30000")
    assert batch_plan.differences == ("SOLVER.MAX_ITER 24000 -> 30000",)


@pytest.mark.parametrize("options", [{"batch": 15}, {"batch": -2}, {"images_per_gpu": 0}])
def test_a_batch_that_cannot_be_shared_is_refused(options):
    with pytest.raises(UserError):
        planned(2, **options)


class Recorder:
    """What `accumulated_step` uses of a detectron2 trainer, around a mean squared error; float64."""

    def __init__(self, images):
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1).double()
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)
        self._data_loader_iter = iter([images])
        self.calls, self.waited, self.written = [], 0, {}
        self.model = self

    def __call__(self, images):
        self.calls.append(len(images))
        errors = (self.layer(torch.stack(images)) - 1).squeeze(1)
        return {"square": (errors**2).mean(), "absolute": errors.abs().mean()}

    @contextlib.contextmanager
    def no_sync(self):
        self.waited += 1
        yield

    def _write_metrics(self, losses, data_time):
        self.written = {name: float(value) for name, value in losses.items()}


def test_accumulation_equals_one_large_batch():
    images = list(torch.randn(12, 3, dtype=torch.float64))
    whole = Recorder(images)
    accumulated_step(whole, 1)
    for passes in (2, 3, 12):
        part = Recorder(images)
        accumulated_step(part, passes)
        assert part.calls == [12 // passes] * passes
        assert part.waited == passes - 1  # ranks exchange gradients once
        assert part.written == pytest.approx(whole.written, rel=1e-12)
        for one, many in zip(whole.layer.parameters(), part.layer.parameters(), strict=True):
            torch.testing.assert_close(many.grad, one.grad, rtol=0, atol=1e-12)
            torch.testing.assert_close(many, one, rtol=0, atol=1e-12)


def test_precise_bn_sees_as_many_images_in_smaller_parts():
    cfg, _ = planned(1, batch=16)
    parts = precise_bn_settings(cfg, 8)
    assert (parts.SOLVER.IMS_PER_BATCH, parts.TEST.PRECISE_BN.NUM_ITER) == (2, 1600)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.TEST.PRECISE_BN.NUM_ITER) == (16, 200)


def test_the_loader_inside_is_the_one_that_pins():
    inner = torch.utils.data.DataLoader([1, 2])
    outer = SimpleNamespace(_dataset=SimpleNamespace(dataset=inner))
    assert pin_memory(outer, True) is outer
    assert inner.pin_memory is True


def test_speed_is_read_from_what_detectron2_measured():
    def history(mean):
        return SimpleNamespace(global_avg=lambda: mean)

    storage = SimpleNamespace(histories=lambda: {"time": history(0.5), "data_time": history(0.1)})
    assert speed(storage)["iterations_per_second"] == 2
    assert speed(storage)["loading_share"] == 0.2
    assert speed(SimpleNamespace(histories=dict)) == {}
