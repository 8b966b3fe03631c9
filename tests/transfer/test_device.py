"""transfer/ on a GPU, as far as a CPU can show it: precision, copies that do not wait, workers, full memory."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import transfer.imagenet
import transfer.knn
from adco.data.batch import Request
from adco.data.transforms import functional
from adco.evaluation.records import load_record
from tests.transfer.data import arguments, assert_one_line_error, splits
from transfer import cli, throughput
from transfer.classifier import dataset, engine
from transfer.classifier.command import hits
from transfer.classifier.engine import evaluate, one_step, train
from transfer.classifier.network import Network, make_optimizer
from transfer.classifier.protocols import IMAGENET, PLACES205, VOC_ADCO
from transfer.classifier.state import Trained, TrainingSetup, resume, save

CPU, META = torch.device("cpu"), torch.device("meta")


# precision


@pytest.mark.parametrize("name", ["moco", "semi10"])
def test_bf16_is_the_backbones_alone_in_training_and_evaluation(folder, backbone, tmp_path, name):
    """What each module sees: bf16 in the backbone; float32, in and out, in the heads, where autocast is off."""
    data, val = splits(folder)
    protocol, setup = replace(IMAGENET[name], batch=8), TrainingSetup(CPU, 0, 32, 37, tmp_path, bf16=True)
    network = Network(backbone, protocol, 3, 32, torch.bfloat16)
    seen = []

    def look(module, inputs, output):
        where = "head" if isinstance(module, torch.nn.Linear) else "backbone"
        seen.append((where, inputs[0].dtype, output.dtype, torch.is_autocast_enabled("cpu"), module.training))

    for module in (network.heads["gap"][-1], network.backbone.layer4[1].conv1):
        module.register_forward_hook(look)
    item = dataset.TrainingPictures(data, protocol, 32, 0)[Request(0, np.arange(8))]
    loss = one_step(network, network, make_optimizer(network), item, setup, 1.0)
    evaluate(network, val, setup, hits)
    assert loss.dtype == torch.float32
    half = torch.bfloat16
    for training, got in ((True, seen[:2]), (False, seen[2:4])):
        tuned = training and name == "semi10"  # a frozen backbone stays in eval mode
        assert got == [
            ("backbone", half, half, True, tuned),
            ("head", torch.float32, torch.float32, False, training),
        ]


def test_without_bf16_everything_is_float32(backbone):
    network = Network(backbone, IMAGENET["semi10"], 3, 32)
    seen = []
    network.backbone.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert network(torch.zeros(2, 3, 32, 32))["gap"].dtype == torch.float32 and seen == [torch.float32]


@pytest.mark.parametrize(("more", "precision"), [((), "float32"), (("--bf16",), "bf16")])
def test_records_of_training_say_the_precision(folder, tmp_path, more, precision):
    words = ["--epochs", "1", "--train-batch", "8", "--evaluations", "1", *more]
    assert transfer.imagenet.main(arguments(folder, tmp_path / "out", *words)) == 0
    (record,) = map(load_record, (tmp_path / "out").glob("*.json"))
    assert record.settings["precision"] == precision


def test_features_are_float32_and_never_tf32(folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "set_arithmetic", lambda *arguments: asked.append(arguments))
    assert transfer.knn.main(arguments(folder, tmp_path / "out", "--k", "3")) == 0
    assert asked == [(CPU,)]  # whose precision is float32 unless another one is named
    assert load_record(tmp_path / "out" / "knn-k3-t0.07@32px.json").settings["precision"] == "float32"


# copies


class Waiting(TorchFunctionMode):
    """Notes every call for which the CPU would wait for a GPU; the device `meta` stands in for it.

    These are copies that block, and tensors made of numbers there. To read a tensor of `meta` is an error anyway.
    """

    def __init__(self):
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if isinstance(made, torch.Tensor) and made.is_meta and not kwargs.get("non_blocking"):
            given = [thing for thing in (*args, *kwargs.values()) if isinstance(thing, torch.Tensor)]
            if (given and not given[0].is_meta) or func.__name__ in ("tensor", "as_tensor", "new_tensor"):
                self.calls.append(func.__name__)
        return made


@pytest.fixture
def stand_in(monkeypatch):
    """`upload` treats `meta` as it does a GPU; autocast, which does not know it, is left out."""
    for module in (functional, dataset, engine):
        monkeypatch.setattr(module, "upload", lambda tensor, device: tensor.to(device, non_blocking=True))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def test_what_waits_is_noticed():
    there = torch.empty(3, device=META)
    with Waiting() as waiting:
        there.new_tensor([1.0])
        torch.zeros(3).to(there)
        torch.tensor([1.0], device=META)
        torch.zeros(3).to(META, non_blocking=True)
        there + 1
    assert waiting.calls == ["new_tensor", "to", "tensor"]


@pytest.mark.parametrize("blur", [0.0, 1.0])
@pytest.mark.parametrize("protocol", [PLACES205["fair"], IMAGENET["semi10"], VOC_ADCO], ids=lambda p: p.name)
def test_a_step_never_waits_for_the_device(backbone, monkeypatch, stand_in, protocol, blur):
    """Jitter, lighting, other statistics and blur: only the first step copies its constants."""
    view = dataset._view
    monkeypatch.setattr(dataset, "_view", lambda protocol, px: replace(view(protocol, px), blur_p=blur))
    network = Network(backbone, protocol, 3, 96).to(META)
    optimizer, setup = make_optimizer(network), TrainingSetup(META, 0, 96, 110, None)
    labels = torch.zeros((4, 3) if protocol.loss == "bce" else 4, dtype=torch.int64)
    for number in range(2):
        item = Request(number, np.arange(4)), torch.zeros(4, 3, 96, 96, dtype=torch.uint8), labels, {}
        with Waiting() as waiting:
            loss = one_step(network, network, optimizer, item, setup, 1.0)
    assert loss.is_meta and waiting.calls == []


def test_blurred_views_are_those_of_augment(monkeypatch):
    view = dataset._view
    monkeypatch.setattr(dataset, "_view", lambda protocol, px: replace(view(protocol, px), blur_p=1.0))
    crops, request = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), Request(1, np.arange(4))
    choices = dataset.parameters.sample_params(dataset._view(IMAGENET["moco"], 32), 0, 1, np.arange(4), 0).choices
    assert (choices.sigma_px > 0).all()
    made = dataset.to_network(crops, request, IMAGENET["moco"], 32, 0, CPU)
    assert torch.equal(made, functional.augment(crops, choices))


def test_the_loss_is_read_every_ten_steps_and_for_the_history(folder, backbone, tmp_path, monkeypatch):
    data, val = splits(folder)
    protocol, step, read = replace(IMAGENET["moco"], epochs=9, batch=8), engine.one_step, []  # 27 steps, 3 an epoch

    class Loss:
        def __init__(self, loss):
            self.loss, self.number = loss, next(numbers)

        def item(self):
            read.append(self.number)
            return self.loss.item()

    numbers = iter(range(1, 100))
    monkeypatch.setattr(engine, "one_step", lambda *arguments: Loss(step(*arguments)))
    run = train(protocol, backbone, data, val, TrainingSetup(CPU, 0, 32, 37, tmp_path, evaluations=1), hits)
    assert read == [3, 10, 20, 27] and [row["step"] for row in run.history] == [3, 27]
    assert all(math.isfinite(row["loss"]) for row in run.history)


# resuming


@pytest.mark.parametrize("kind", ["adco", "caco"])
def test_momentum_is_taken_over_in_the_layout_of_the_weights(backbone, tmp_path, kind):
    """Saved where weights are channels last (a GPU), resumed where they are contiguous."""
    protocol = replace(IMAGENET["semi10"], optimizer=IMAGENET[kind].optimizer)
    saved = Network(backbone, protocol, 3, 32).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(saved)
    saved(torch.randn(4, 3, 32, 32))["gap"].square().sum().backward()
    optimizer.step()
    save(tmp_path / "training.pth", "key", 7, optimizer, Trained(saved))
    network = Network(backbone, protocol, 3, 32)
    again = make_optimizer(network)
    assert resume(tmp_path / "training.pth", "key", again, Trained(network)) == 7
    for old, new in zip(saved.parameters(), network.parameters(), strict=True):
        (before,), (after,) = optimizer.state[old].values(), again.state[new].values()
        assert torch.equal(before, after) and after.stride() == new.stride()


# workers


def test_training_and_evaluation_are_the_same_with_any_threads_and_start_no_process(
    folder, backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "fork", None)
    (data, val), protocol = splits(folder), replace(IMAGENET["semi10"], epochs=2, batch=8)
    runs = []
    for workers in (0, 1, 3):
        (tmp_path / str(workers)).mkdir()
        setup = TrainingSetup(CPU, workers, 32, 37, tmp_path / str(workers))
        runs.append(train(protocol, backbone, data, val, setup, hits))
    for other in runs[1:]:
        assert other.history == runs[0].history
        for a, b in zip(runs[0].network.state_dict().values(), other.network.state_dict().values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("given", "expected"), [((), 5), (("--workers", "0"), 0), (("--workers", "3"), 3)])
def test_workers_are_the_cores_unless_a_number_is_given(folder, tmp_path, monkeypatch, given, expected):
    monkeypatch.setattr("adco.utils.device.usable_cores", lambda: 6)
    words = ["--checkpoint", "random:resnet18", "--data", str(folder), "--output-dir", str(tmp_path), "--device", "cpu"]
    args = cli.make_parser("", "").parse_args([*words, *given])
    assert cli.make_job(args).reader.workers == expected


@pytest.mark.parametrize("tool", [transfer.knn, transfer.imagenet, throughput])
def test_a_wrong_word_for_workers_is_one_line(folder, tmp_path, capsys, tool):
    words = ["--checkpoint", "random:resnet18", "--data", str(folder), "--workers", "many"]
    assert_one_line_error(capsys, tool.main(words), "--workers many: expected auto or a number of threads")


# memory


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")],
    ids=["CUDA", "cuDNN"],
)
def test_a_full_memory_in_training_says_what_to_lower(folder, tmp_path, capsys, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(engine, "one_step", full)
    code = transfer.imagenet.main(arguments(folder, tmp_path, "--train-batch", "8"))
    assert_one_line_error(capsys, code, "out of memory; 8 images of 32 px at a time", "--train-batch", "--bf16")
