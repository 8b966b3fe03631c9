"""transfer/classifier/engine.py: training against torch, evaluations, exact resume, a backbone that does not move."""

from dataclasses import replace

import pytest
import torch

from adco.utils.errors import UserError
from tests.transfer.classifier import ALL
from tests.transfer.data import splits
from transfer.classifier import engine
from transfer.classifier.command import hits
from transfer.classifier.dataset import TrainingPictures, requests, to_network
from transfer.classifier.engine import evaluation_steps, train
from transfer.classifier.network import Network, make_optimizer
from transfer.classifier.protocols import IMAGENET, PLACES205, VOC_ADCO
from transfer.classifier.state import TrainingSetup


def setup_in(path, **changes):
    path.mkdir(parents=True, exist_ok=True)
    return TrainingSetup(torch.device("cpu"), 0, 32, 37, path, **changes)


SHORT = {"epochs": 2, "batch": 8}


def test_evaluations_are_spread_and_end_with_the_last_step():
    assert evaluation_steps(5, 50, 10) == set(range(5, 51, 5))
    assert evaluation_steps(5, 50, 1) == {5, 50} and max(evaluation_steps(5, 23, 3)) == 23


def test_one_step_is_torchs(folder, backbone, tmp_path):
    """A frozen backbone and one SGD step, written out with torch's own parts."""
    data, val = splits(folder)
    protocol = replace(IMAGENET["moco"], batch=24, epochs=1, lr=0.5, weight_decay=0.01)
    run = train(protocol, backbone, data, val, setup_in(tmp_path / "run", seed=3), hits)
    torch.manual_seed(3)
    network = Network(backbone, protocol, 3, 32)
    layer = network.heads["gap"][-1]
    item = TrainingPictures(data, protocol, 32, 3)[next(requests(3, 24, 24, 0, 1))]
    with torch.no_grad():
        features = backbone.module()(to_network(item[1], item[0], protocol, 32, 3, torch.device("cpu")))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    torch.nn.functional.cross_entropy(layer(features), item[2]).backward()
    optimizer.step()
    torch.testing.assert_close(run.network.heads["gap"][-1].weight, layer.weight)


@pytest.mark.parametrize("name", ["i-adco", "i-caco", "i-semi10", "p-vissl", "voc"])
def test_resumed_equals_uninterrupted(folder, backbone, tmp_path, monkeypatch, name):
    """Stopped in the second epoch and started again: the same weights and the same scores, bit for bit."""
    protocol = replace(ALL[name], **SHORT, view="crop", loss="softmax")
    data, val = splits(folder)
    setup = {where: replace(setup_in(tmp_path / where), crop_px=96, resize_px=96) for where in ("whole", "stopped")}
    whole = train(protocol, backbone, data, val, setup["whole"], hits)
    step, done = engine.one_step, []

    def stop_at_fourth(*arguments):
        done.append(1)
        if len(done) == 5:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "one_step", stop_at_fourth)
        with pytest.raises(KeyboardInterrupt):
            train(protocol, backbone, data, val, setup["stopped"], hits)
    resumed = train(protocol, backbone, data, val, setup["stopped"], hits)
    assert resumed.history == whole.history and len(whole.history) == 2
    for (key, one), two in zip(whole.network.state_dict().items(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    again = train(protocol, backbone, data, val, setup["stopped"], hits)  # complete: nothing to do
    assert again.history == whole.history


def test_state_of_another_run_is_refused(folder, backbone, tmp_path):
    protocol = replace(IMAGENET["moco"], **SHORT)
    data, val = splits(folder)
    train(protocol, backbone, data, val, setup_in(tmp_path / "run"), hits)
    for other in (replace(protocol, lr=1.0), protocol):
        seed = 0 if other is not protocol else 1
        with pytest.raises(UserError, match="the state of another run"):
            train(other, backbone, data, val, setup_in(tmp_path / "run", seed=seed), hits)
    (tmp_path / "run" / "training.pth").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="damaged"):
        train(protocol, backbone, data, val, setup_in(tmp_path / "run"), hits)


def test_a_frozen_backbone_that_moves_is_an_error(folder, backbone, tmp_path, monkeypatch):
    protocol, (data, val) = replace(IMAGENET["moco"], **SHORT), splits(folder)
    still = train(protocol, backbone, data, val, setup_in(tmp_path / "still"), hits)
    assert len(still.unmoved) == 64
    monkeypatch.setattr(Network, "training_mode", lambda network: network.train())  # BatchNorm in training mode
    with pytest.raises(RuntimeError, match="frozen backbone changed"):
        train(protocol, backbone, data, val, setup_in(tmp_path / "moved"), hits)


def test_what_moves_is_what_the_protocol_says(folder, backbone, tmp_path):
    data, val = splits(folder)
    before = backbone.module().state_dict()

    def moved(protocol, where):
        run = train(replace(protocol, **SHORT, view="crop", loss="softmax"), backbone, data, val, setup_in(where), hits)
        after = run.network.backbone.state_dict()
        return {key.rpartition(".")[2] for key, value in before.items() if not torch.equal(value, after[key])}

    assert moved(IMAGENET["adco"], tmp_path / "a") == set()
    assert moved(VOC_ADCO, tmp_path / "b") == {"running_mean", "running_var", "num_batches_tracked"}
    assert {"weight", "bias", "running_mean"} <= moved(IMAGENET["semi10"], tmp_path / "c")


def test_parameter_groups(backbone):
    tuned = make_optimizer(Network(backbone, IMAGENET["semi1"], 3, 32)).param_groups
    assert [group["base_lr"] for group in tuned] == [5.0, 0.02]
    vissl = make_optimizer(Network(backbone, PLACES205["vissl"], 3, 96)).param_groups
    assert [group["weight_decay"] for group in vissl] == [5e-4, 0.0] and vissl[0]["nesterov"]
    assert len(vissl[0]["params"]) == len(vissl[1]["params"]) == 8


def test_training_learns(folder, backbone, tmp_path):
    protocol = replace(PLACES205["openselfsup"], epochs=5, batch=8, milestones=(4,), lr=0.1)
    data, val = splits(folder)
    setup = replace(setup_in(tmp_path / "run"), crop_px=96, resize_px=96)
    run = train(protocol, backbone, data, val, setup, hits)
    assert set(run.final) == {"res2", "res3", "res4", "res5"}
    assert max(values["top1"].mean() for values in run.final.values()) > 0.6  # three colours
    assert run.history[-1]["loss"] < 0.5 * run.history[0]["loss"]


def test_unreadable_training_images(folder, backbone, tmp_path):
    protocol, (data, val) = replace(IMAGENET["moco"], **SHORT), splits(folder)
    (folder / "train" / "cat" / "3.png").write_bytes(b"x")
    with pytest.raises(UserError, match="3.png.*--max-bad-share"):
        train(protocol, backbone, data, val, setup_in(tmp_path / "a"), hits)
    run = train(protocol, backbone, data, val, setup_in(tmp_path / "b", max_bad_share=0.1), hits)
    assert list(run.bad) == ["cat/3.png"]
    (folder / "val" / "dog" / "1.png").write_bytes(b"x")
    with pytest.raises(UserError, match="dog/1.png: cannot be read"):
        train(protocol, backbone, data, val, setup_in(tmp_path / "c", max_bad_share=0.1), hits)
