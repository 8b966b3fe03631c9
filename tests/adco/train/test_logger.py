"""The kNN probe sees what is in the features and leaves the network as it found it; logs keep what they are given."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from unittest import mock

import pytest
import torch
from torch import nn

from adco.data.images import index_folder
from adco.train.knn_probe import NOTHING, EvalDataset, KnnProbe, embed, gather_in_order
from adco.train.logger import Logger, read_metrics
from adco.train.throughput import Throughput
from adco.utils import distributed
from adco.utils.errors import UserError
from tests.ranks import run_ranks

CPU = torch.device("cpu")


class Orientation(nn.Module):
    """A hand-made feature that tells the fixture's stripes apart: energies of horizontal and vertical differences."""

    def forward(self, batch):
        gray = batch.mean(dim=1)
        across, down = (gray.diff(dim=2)[:, 1:], gray.diff(dim=1)[:, :, 1:])
        energies = torch.stack(
            [across.square().mean(dim=(1, 2)), down.square().mean(dim=(1, 2)), (across * down).mean(dim=(1, 2))], 1
        )
        return energies / energies[:, :2].sum(dim=1, keepdim=True)


class Noise(nn.Module):
    def forward(self, batch):
        return torch.randn(len(batch), 8)


def probe(root, **changes):
    return KnnProbe(root, **({"px": 32, "k": 5, "temperature": 0.07, "max_images": 1000, "workers": 0} | changes))


def test_good_features_score_high_and_noise_does_not(images):
    torch.manual_seed(0)
    assert probe(images)(Orientation(), CPU) > 80
    assert probe(images)(Noise(), CPU) < 70


@pytest.mark.parametrize("training", [True, False])
def test_the_networks_mode_and_statistics_are_put_back(images, training):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    probe(images)(network, CPU)
    assert network.training is training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_at_most_max_images_are_used_evenly_over_the_classes(images):
    small = probe(images, max_images=12)
    assert [len(part) for part in small.sets] == [12, 9]
    labels = [small.sets[0][i][1] for i in range(12)]
    assert [labels.count(label) for label in range(3)] == [4, 4, 4]


def test_different_classes_in_train_and_val_are_refused(images, tmp_path):
    shutil.copytree(images, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "val" / "class2")
    with pytest.raises(UserError, match="different classes"):
        probe(tmp_path / "data")


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_rate_counts_since_the_last_question():
    rate = Throughput()
    rate.last -= 2
    assert rate(10) == pytest.approx(5, rel=0.05)
    rate.last -= 1
    assert rate(13) == pytest.approx(3, rel=0.05)


def test_rate_tells_waiting_for_images_from_work():
    """Three batches that take 60 ms each to come, each worked on for 20 ms: three quarters of the time is waiting."""

    def slow_loader():
        for number in range(3):
            time.sleep(0.06)
            yield number

    rate, seen = Throughput(), []
    for batch in rate.waiting(slow_loader()):
        seen.append(batch)
        time.sleep(0.02)
    found = rate.scalars(6)
    assert seen == [0, 1, 2]
    assert found["loader_wait_share"] == pytest.approx(0.75, abs=0.12)
    assert found["images_per_second"] == pytest.approx(6 / 0.24, rel=0.3)
    assert "gpu_memory_gib" not in found
    time.sleep(0.01)
    assert rate.scalars(6)["loader_wait_share"] == 0


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_keeps_rows_and_words_and_drops_those_after_the_step_it_resumes_at(tmp_path, capsys):
    log = Logger(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step})
    log.warn(3, "warning: something")
    log.close()
    assert rows_of(log.path)[2:] == [{"step": 3, "loss": 1 / 3}, {"step": 3, "text": "warning: something"}]
    assert capsys.readouterr().err == "step 3: warning: something\n"
    Logger(tmp_path, 2).close()
    assert rows_of(log.path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_the_curves_are_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Logger(tmp_path, 0)
    log.write(10, {"loss": 2.5})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 2.5)]


def test_weights_and_biases_absent_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"monitor.wandb=true, but wandb is not installed; pip install wandb"):
        Logger(tmp_path, 0, wandb=True)


def test_weights_and_biases_gets_rows_and_words_and_a_resumed_run_is_the_same_one(tmp_path, monkeypatch):
    wandb = mock.MagicMock(__spec__=mock.Mock())
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (0, 5):
        log = Logger(tmp_path, step, wandb=True, settings={"batch": 64})
        log.write(step + 1, {"loss": 1.0})
        log.warn(step + 1, "warning: something")
        log.close()
    first, second = (call.kwargs["id"] for call in wandb.init.call_args_list)
    assert first == second == (tmp_path / "wandb_id").read_text()
    assert wandb.init.call_args.kwargs["config"] == {"batch": 64}
    run = wandb.init.return_value
    assert [call.args[0]["step"] for call in run.log.call_args_list] == [1, 6]
    assert "warning: something" in run.alert.call_args.args[1]
    assert run.finish.call_count == 2


def log_of_a_rank(folder) -> bool:
    log = Logger(folder, 0)
    log.write(1, {"loss": float(distributed.rank())})
    log.warn(1, f"rank {distributed.rank()}")
    log.close()
    return log.path.is_file()


def test_ranks_other_than_0_write_nothing(tmp_path):
    run_ranks(log_of_a_rank, 2, tmp_path)
    assert rows_of(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.0}, {"step": 1, "text": "rank 0"}]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def probe_of_a_rank(root, max_images) -> tuple[float, float]:
    """Orientation's score, and that of a network whose statistics differ from rank to rank."""
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    norm[1].running_mean.add_(distributed.rank())
    before = norm[1].running_mean.clone()
    small = probe(root, max_images=max_images)
    scores = small(Orientation(), CPU), small(norm, CPU)
    assert torch.equal(norm[1].running_mean, before)
    return scores


@pytest.mark.parametrize("max_images", [1000, 13, 1])
def test_ranks_share_the_pictures_and_agree_with_one_process(images, tmp_path, max_images):
    """Unequal shares, one with an image that cannot be read, one with none at all."""
    shutil.copytree(images, tmp_path / "data")
    (tmp_path / "data" / "val" / "class0" / "002.png").write_bytes(b"not an image")
    alone = probe_of_a_rank(tmp_path / "data", max_images)
    assert run_ranks(probe_of_a_rank, 2, tmp_path / "data", max_images) == [alone, alone]


def test_gathered_rows_are_in_the_pictures_order(images):
    data = EvalDataset(index_folder(images / "train"), 32, 7)
    whole = embed(lambda batch: batch.mean(dim=(2, 3)), data, CPU, 0)
    assert len(data) == 7
    for rows, labels in run_ranks(gathered, 2, images):
        assert labels.tolist() == [*whole[1].tolist(), NOTHING]
        assert torch.allclose(rows[:7], whole[0])


def test_threads_read_the_pictures_and_no_process_is_started(images, monkeypatch):
    """A fork beside other threads' Python, as gloo's, hangs now and then."""
    monkeypatch.setattr(os, "fork", None)
    data = EvalDataset(index_folder(images / "train"), 32, 48)
    alone, shared = (embed(lambda batch: batch.flatten(1), data, CPU, workers) for workers in (0, 3))
    assert all(map(torch.equal, alone, shared))


def gathered(root):
    data = EvalDataset(index_folder(root / "train"), 32, 7)
    return tuple(map(gather_in_order, embed(lambda batch: batch.mean(dim=(2, 3)), data, CPU, 0)))


def test_nothing_readable_is_one_line(images, tmp_path):
    shutil.copytree(images, tmp_path / "data")
    for path in (tmp_path / "data" / "val").rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(UserError, match="none of the images of train or of val can be read"):
        probe(tmp_path / "data")(Orientation(), CPU)
