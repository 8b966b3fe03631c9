"""Features and classifiers on a GPU: float32 that agrees with the CPU, no hidden synchronisation, exact resumption."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from adco.data.batch import Request
from adco.data.images import index_folder
from adco.utils.device import set_arithmetic
from adco.weights.backbone import load_backbone
from tests.transfer.data import make_folder, splits
from transfer.classifier import dataset, engine
from transfer.classifier.command import hits
from transfer.classifier.engine import one_step, train
from transfer.classifier.network import Network, make_optimizer
from transfer.classifier.protocols import IMAGENET, PLACES205, VOC_ADCO
from transfer.classifier.state import TrainingSetup
from transfer.features.extract import Feature, Reader, extract
from transfer.features.reading import ImageList
from transfer.features.transforms import Transform

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("shapes") / "shapes")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("random:resnet18")


def test_features_are_those_of_the_cpu(folder, backbone, tmp_path, gpu):
    set_arithmetic(gpu)
    index = index_folder(folder / "train")
    images = ImageList(index.root, index.paths, "train")
    features = [Feature(Transform("center", 64, 72)), Feature(Transform("squash", 64, 72), "res5")]
    there, here = (
        extract(backbone, images, features, tmp_path / str(device), Reader(device, 2, 8)) for device in (gpu, CPU)
    )
    for feature in features:
        np.testing.assert_allclose(there.rows[feature], here.rows[feature], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("protocol", [PLACES205["fair"], IMAGENET["semi10"], VOC_ADCO], ids=lambda p: p.name)
def test_a_step_never_waits_for_the_gpu(backbone, tmp_path, monkeypatch, gpu, protocol, bf16):
    view = dataset._view
    monkeypatch.setattr(dataset, "_view", lambda protocol, px: replace(view(protocol, px), blur_p=1.0))
    network = Network(backbone, protocol, 3, 96, torch.bfloat16 if bf16 else None).to(gpu)
    network = network.to(memory_format=torch.channels_last)
    optimizer, setup = make_optimizer(network), TrainingSetup(gpu, 0, 96, 110, tmp_path, bf16=bf16)
    labels = torch.zeros((4, 3) if protocol.loss == "bce" else 4, dtype=torch.int64)
    try:
        for number in range(4):
            item = Request(number, np.arange(4)), torch.zeros(4, 3, 96, 96, dtype=torch.uint8), labels, {}
            torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")  # not while constants are made
            loss = one_step(network, network, optimizer, item, setup, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.is_cuda and torch.isfinite(loss)


@pytest.mark.parametrize("protocol", [IMAGENET["caco"], IMAGENET["semi10"]], ids=lambda p: p.name)
def test_what_the_network_sees_is_what_it_sees_on_the_cpu(folder, protocol, gpu):
    data, request = splits(folder)[0], Request(2, np.arange(12))
    protocol = replace(protocol, jitter=(0.4, 0.4, 0.4, 0.0), lighting=True)
    images = dataset.TrainingPictures(data, protocol, 64, 0)
    seen = []
    for device in (gpu, CPU):
        work = images.begin(request, device)
        _, crops, labels, _ = work.batch([work.rows(0, 12)])
        assert crops.is_pinned() is (device == gpu)
        seen.append(dataset.to_network(crops, request, protocol, 64, 0, device).cpu())
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["moco", "caco", "semi10"])
def test_training_is_that_of_the_cpu_and_goes_on_after_a_stop(folder, backbone, tmp_path, monkeypatch, gpu, name, bf16):
    set_arithmetic(gpu)
    data, val = splits(folder)
    protocol, runs = replace(IMAGENET[name], epochs=2, batch=8, lr=0.01, lr_backbone=0.001), {}
    for where, device in (("gpu", gpu), ("cpu", CPU), ("stopped", gpu)):
        (tmp_path / where).mkdir()
        setup = TrainingSetup(device, 2, 64, 72, tmp_path / where, bf16=bf16)
        step, done = engine.one_step, []

        def stop_at_fifth(*arguments, step=step, done=done):
            done.append(1)
            if len(done) == 5:
                raise KeyboardInterrupt
            return step(*arguments)

        if where == "stopped":
            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(engine, "one_step", stop_at_fifth)
                train(protocol, backbone, data, val, setup, hits)
        runs[where] = train(protocol, backbone, data, val, setup, hits)
    losses = {where: [row["loss"] for row in run.history] for where, run in runs.items()}
    assert losses["stopped"] == pytest.approx(losses["gpu"], rel=0.1 if bf16 else 0.01)
    if not bf16:
        assert losses["gpu"] == pytest.approx(losses["cpu"], rel=0.05)
