"""Gradient accumulation in detectron2's trainer under mixed precision."""

import pytest
import torch

pytest.importorskip("detectron2", reason="needs detectron2")

from tests.detection.test_batch_scaling import Recorder, accumulated_step  # noqa: E402


def test_accumulation_under_mixed_precision_on_a_gpu(gpu):
    images = [image.cuda() for image in torch.randn(4, 3, dtype=torch.float64)]
    trainer = Recorder(images)
    trainer.layer.float().cuda()
    trainer.model = lambda part: {"loss": trainer.layer(torch.stack(part).float()).square().mean()}
    trainer.grad_scaler = torch.amp.GradScaler("cuda")
    before = trainer.layer.weight.clone()
    accumulated_step(trainer, 2)
    assert not torch.equal(before, trainer.layer.weight)
