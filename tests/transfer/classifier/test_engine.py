"""classifier/engine.py and its recipes: schedules, views, exact resume, ranks, a backbone that does not move."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as pixels

import transfer.classifier.engine as engine
import transfer.imagenet
import transfer.places205
from adco.data.images import index_folder
from adco.data.transforms import functional
from adco.evaluation.records import load_record
from adco.utils.errors import UserError
from adco.weights.backbone import load_backbone
from tests import ROOT
from tests.transfer.data import assert_one_line_error, draw_image, make_folder
from transfer.classifier.command import hits
from transfer.classifier.dataset import Request, lighting, renormalised, requests, to_network, voc_view
from transfer.classifier.engine import TrainingSetup, looks_at, optimiser_for, train
from transfer.classifier.label_subsets import drawn_list, list_sha256, only, read_list
from transfer.classifier.protocols import IMAGENET, PLACES205, VOC_ADCO, ClassifierProtocol
from transfer.features.transforms import FITS
from transfer.imagenet import labelled
from transfer.places205 import IMAGES, LISTS, read_places

ALL = {**{f"i-{n}": r for n, r in IMAGENET.items()}, **{f"p-{n}": r for n, r in PLACES205.items()}, "voc": VOC_ADCO}


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "shapes")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("random:resnet18")


def plan_in(path, **changes):
    path.mkdir(parents=True, exist_ok=True)
    return TrainingSetup(torch.device("cpu"), 0, 32, 37, path, **changes)


def splits(folder):
    return [labelled(index_folder(folder / name), name) for name in ("train", "val")]


def arguments(folder, out, *more):
    fixed = ["--checkpoint", "random:resnet18", "--image-px", "32", "--device", "cpu", "--workers", "0"]
    return [*fixed, "--data", str(folder), "--output-dir", str(out), *more]


SHORT = {"epochs": 2, "batch": 8}


# the recipes


def test_schedules_by_hand():
    moco, adco, places, fair = IMAGENET["moco"], IMAGENET["adco"], PLACES205["adco"], PLACES205["fair"]
    assert [moco.factor(epoch * 10, 10) for epoch in (0, 59, 60, 79, 80, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert adco.factor(0, 10) * adco.lr == 10 and adco.factor(500, 10) * adco.lr == pytest.approx(0.5 * 10.01)
    assert adco.factor(999, 10) == adco.factor(990, 10)  # by epoch
    assert [places.factor(step, 10) for step in (0, 60, 120, 240)] == pytest.approx([1, 0.5, 0, 1])  # it oscillates
    assert [fair.factor(step, 7) for step in (39_999, 40_000, 120_000)] == pytest.approx([1, 0.1, 0.001])
    assert fair.steps(1000) == (4, 140_000)
    voc = [VOC_ADCO.factor(epoch, 1) for epoch in range(3)]
    assert voc == pytest.approx([0.5 * (1 + math.cos(math.pi * (epoch + 1) / 12)) for epoch in range(3)])


def test_values_are_the_tables():
    places = {n: (r.lr, r.epochs, r.iterations, r.weight_decay, r.milestones) for n, r in PLACES205.items()}
    assert places == {
        "vissl": (0.01, 14, 0, 5e-4, (4, 8, 12)),
        "fair": (0.01, 0, 140_000, 1e-4, (40_000, 80_000, 120_000)),
        "openselfsup": (0.01, 28, 0, 1e-4, (7, 14, 21)),
        "adco": (5.0, 100, 0, 0.0, ()),
    }
    imagenet = {n: (r.lr, r.epochs, r.batch, r.weight_decay, r.optimizer) for n, r in IMAGENET.items()}
    assert imagenet["adco"] == (10.0, 100, 256, 0.0, "sgd") and imagenet["moco"] == (30.0, 100, 256, 0.0, "sgd")
    assert imagenet["simsiam"] == (pytest.approx(0.1 * 4096 / 256), 90, 4096, 0.0, "larc")
    assert imagenet["swav"] == (0.3, 100, 256, 1e-6, "sgd")
    assert imagenet["caco"] == (pytest.approx(0.025 * 4096 / 256), 100, 4096, 0.0, "larc")
    assert (VOC_ADCO.lr, VOC_ADCO.epochs, VOC_ADCO.batch, VOC_ADCO.loss) == (0.05, 100, 16, "bce")


@pytest.mark.parametrize("recipe", ALL.values(), ids=ALL)
def test_recipes_explain_themselves(recipe):
    assert len(recipe.about.splitlines()) == 2 and all(len(line) < 118 for line in recipe.about.splitlines())
    assert recipe.fit in FITS and recipe.backbone in ("frozen", "statistics", "tuned")


def test_deviations_are_in_the_name():
    short = IMAGENET["moco"].shortened(10, 64)
    assert (short.name, short.epochs, short.milestones, short.lr) == (
        "imagenet-linear/moco-10ep-batch64",
        10,
        (6, 8),
        7.5,
    )
    assert IMAGENET["moco"].shortened(100, 256) is IMAGENET["moco"]
    assert PLACES205["adco"].shortened(50, None).period_epochs == 6
    with pytest.raises(UserError, match="iterations"):
        PLACES205["fair"].shortened(3, None)


def test_looks_are_spread_and_end_at_the_end():
    assert looks_at(5, 50, 10) == set(range(5, 51, 5))
    assert looks_at(5, 50, 1) == {5, 50} and max(looks_at(5, 23, 3)) == 23


# what the network sees


def test_an_epoch_takes_every_picture_once_whatever_the_ranks(monkeypatch):
    alone = [r.samples for r in requests(0, 21, 8, 0, 6)]
    assert [len(samples) for samples in alone] == [8, 8, 5, 8, 8, 5]
    for epoch in (0, 1):
        assert sorted(np.concatenate(alone[3 * epoch : 3 * epoch + 3])) == list(range(21))
    assert (np.concatenate(alone[:3]) != np.concatenate(alone[3:])).any()
    monkeypatch.setattr(engine.distributed, "ranks", lambda: 2)
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr(engine.distributed, "rank", lambda rank=rank: rank)
        halves.append([r.samples for r in requests(0, 21, 8, 0, 6)])
    for whole, one, two in zip(alone, *halves, strict=True):
        assert len(one) == len(two) == -(-len(whole) // 2) and set(whole) <= set(one) | set(two)


def test_statistics_of_a_recipe_replace_imagenets():
    swav, image = IMAGENET["swav"], torch.rand(2, 3, 4, 4)
    expected = pixels.normalize(image, [0.485, 0.456, 0.406], [0.228, 0.224, 0.225])
    torch.testing.assert_close(renormalised(functional.normalize(image), swav), expected)
    assert renormalised(image, IMAGENET["moco"]) is image


def test_lighting_is_alexnets():
    """Its covariance over many images is V diag((0.1 l)^2) V'."""
    images = torch.zeros(20_000, 3, 1, 1)
    noise = lighting(0, Request(0, np.arange(20_000)), images)[:, :, 0, 0].double()
    vectors = torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    ).double()
    expected = vectors @ torch.diag((0.1 * torch.tensor([0.2175, 0.0188, 0.0045]).double()) ** 2) @ vectors.T
    torch.testing.assert_close(torch.cov(noise.T), expected, rtol=0.05, atol=2e-6)


def test_the_voc_view_without_chance_is_a_plain_squash():
    image = draw_image(0, [(200, 30, 30)])
    plain = voc_view(image, 48, np.array([0.9, 0.5, 0.9, 0.9, 0.5]))  # no grey, no flip, angle 0
    np.testing.assert_array_equal(plain, np.asarray(pixels.resize(image, [48, 48], antialias=True)).transpose(2, 0, 1))
    flipped = voc_view(image, 48, np.array([0.9, 0.5, 0.9, 0.1, 0.5]))
    np.testing.assert_array_equal(flipped, plain[:, :, ::-1])
    gray = voc_view(image, 48, np.array([0.9, 0.5, 0.1, 0.9, 0.5]))
    assert (gray[0] == gray[1]).all() and (plain[0] != plain[1]).any()
    bright = voc_view(image, 48, np.array([0.1, 1.0, 0.1, 0.9, 0.5]))
    assert bright.mean() > 1.1 * plain.mean()


def test_the_crops_of_a_step_do_not_depend_on_who_shares_it(folder):
    data, recipe = splits(folder)[0], IMAGENET["moco"]
    samples = np.array([3, 17, 8, 20])
    whole = engine.TrainingPictures(data, recipe, 32, 0)[Request(4, samples)]
    half = engine.TrainingPictures(data, recipe, 32, 0)[Request(4, samples[1::2])]
    seen = [to_network(item[1], item[0], recipe, 32, 0, torch.device("cpu")) for item in (whole, half)]
    torch.testing.assert_close(seen[0][1::2], seen[1], rtol=0, atol=0)
    assert whole[2].tolist() == [data.labels[s] for s in samples]


# training


def test_one_step_is_torchs(folder, backbone, tmp_path):
    """A frozen backbone and one SGD step, written out with torch's own parts."""
    data, val = splits(folder)
    recipe = replace(IMAGENET["moco"], batch=24, epochs=1, lr=0.5, weight_decay=0.01)
    run = train(recipe, backbone, data, val, plan_in(tmp_path / "run", seed=3), hits)
    torch.manual_seed(3)
    network = engine.Network(backbone, recipe, 3, 32)
    layer = network.heads["gap"][-1]
    item = engine.TrainingPictures(data, recipe, 32, 3)[next(requests(3, 24, 24, 0, 1))]
    with torch.no_grad():
        features = backbone.module()(to_network(item[1], item[0], recipe, 32, 3, torch.device("cpu")))
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    torch.nn.functional.cross_entropy(layer(features), item[2]).backward()
    optimiser.step()
    torch.testing.assert_close(run.network.heads["gap"][-1].weight, layer.weight)


@pytest.mark.parametrize("name", ["i-adco", "i-caco", "i-semi10", "p-vissl", "voc"])
def test_resumed_equals_uninterrupted(folder, backbone, tmp_path, monkeypatch, name):
    """Stopped in the second epoch and started again: the same weights and the same scores, bit for bit."""
    recipe = replace(ALL[name], **SHORT, view="crop", loss="softmax")
    data, val = splits(folder)
    plan = {where: replace(plan_in(tmp_path / where), crop_px=96, resize_px=96) for where in ("whole", "stopped")}
    whole = train(recipe, backbone, data, val, plan["whole"], hits)
    step, done = engine.one_step, []

    def stop_at_fourth(*arguments):
        done.append(1)
        if len(done) == 5:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "one_step", stop_at_fourth)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, backbone, data, val, plan["stopped"], hits)
    resumed = train(recipe, backbone, data, val, plan["stopped"], hits)
    assert resumed.history == whole.history and len(whole.history) == 2
    for (key, one), two in zip(whole.network.state_dict().items(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    again = train(recipe, backbone, data, val, plan["stopped"], hits)  # complete: nothing to do
    assert again.history == whole.history


def test_state_of_another_run_is_refused(folder, backbone, tmp_path):
    recipe = replace(IMAGENET["moco"], **SHORT)
    data, val = splits(folder)
    train(recipe, backbone, data, val, plan_in(tmp_path / "run"), hits)
    for other in (replace(recipe, lr=1.0), recipe):
        seed = 0 if other is not recipe else 1
        with pytest.raises(UserError, match="the state of another run"):
            train(other, backbone, data, val, plan_in(tmp_path / "run", seed=seed), hits)
    (tmp_path / "run" / "training.pth").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="damaged"):
        train(recipe, backbone, data, val, plan_in(tmp_path / "run"), hits)


def test_a_frozen_backbone_that_moves_is_found_out(folder, backbone, tmp_path, monkeypatch):
    recipe, (data, val) = replace(IMAGENET["moco"], **SHORT), splits(folder)
    still = train(recipe, backbone, data, val, plan_in(tmp_path / "still"), hits)
    assert len(still.unmoved) == 64
    monkeypatch.setattr(engine.Network, "training_mode", lambda network: network.train())  # BatchNorm in training mode
    with pytest.raises(RuntimeError, match="frozen backbone moved"):
        train(recipe, backbone, data, val, plan_in(tmp_path / "moved"), hits)


def test_what_moves_is_what_the_recipe_says(folder, backbone, tmp_path):
    data, val = splits(folder)
    before = backbone.module().state_dict()

    def moved(recipe, where):
        run = train(replace(recipe, **SHORT, view="crop", loss="softmax"), backbone, data, val, plan_in(where), hits)
        after = run.network.backbone.state_dict()
        return {key.rpartition(".")[2] for key, value in before.items() if not torch.equal(value, after[key])}

    assert moved(IMAGENET["adco"], tmp_path / "a") == set()
    assert moved(VOC_ADCO, tmp_path / "b") == {"running_mean", "running_var", "num_batches_tracked"}
    assert {"weight", "bias", "running_mean"} <= moved(IMAGENET["semi10"], tmp_path / "c")


def test_parameter_groups(backbone):
    tuned = optimiser_for(engine.Network(backbone, IMAGENET["semi1"], 3, 32), IMAGENET["semi1"]).param_groups
    assert [group["base_lr"] for group in tuned] == [5.0, 0.02]
    vissl = optimiser_for(engine.Network(backbone, PLACES205["vissl"], 3, 96), PLACES205["vissl"]).param_groups
    assert [group["weight_decay"] for group in vissl] == [5e-4, 0.0] and vissl[0]["nesterov"]
    assert len(vissl[0]["params"]) == len(vissl[1]["params"]) == 8


def test_training_learns(folder, backbone, tmp_path):
    recipe, (data, val) = replace(PLACES205["openselfsup"], epochs=5, batch=8, milestones=(4,), lr=0.1), splits(folder)
    plan = replace(plan_in(tmp_path / "run"), crop_px=96, resize_px=96)
    run = train(recipe, backbone, data, val, plan, hits)
    assert set(run.final) == {"res2", "res3", "res4", "res5"}
    assert max(values["top1"].mean() for values in run.final.values()) > 0.6  # three colours
    assert run.history[-1]["loss"] < 0.5 * run.history[0]["loss"]


def test_unreadable_training_pictures(folder, backbone, tmp_path):
    recipe, (data, val) = replace(IMAGENET["moco"], **SHORT), splits(folder)
    (folder / "train" / "cat" / "3.png").write_bytes(b"x")
    with pytest.raises(UserError, match="3.png.*--max-bad-share"):
        train(recipe, backbone, data, val, plan_in(tmp_path / "a"), hits)
    run = train(recipe, backbone, data, val, plan_in(tmp_path / "b", max_bad_share=0.1), hits)
    assert list(run.bad) == ["cat/3.png"]
    (folder / "val" / "dog" / "1.png").write_bytes(b"x")
    with pytest.raises(UserError, match="dog/1.png: cannot be read"):
        train(recipe, backbone, data, val, plan_in(tmp_path / "c", max_bad_share=0.1), hits)


def test_bf16_is_close_and_named(folder, tmp_path):
    assert transfer.imagenet.main(arguments(folder, tmp_path, "--epochs", "1", "--train-batch", "8", "--bf16")) == 0
    assert load_record(tmp_path / "imagenet-linear-adco-1ep-batch8-bf16@32px.json").scores["top1"] >= 0


# few labels


def test_drawn_lists_are_a_share_of_each_class_by_the_seed(folder):
    index = index_folder(folder / "train")
    quarter = drawn_list(index, 25, seed=0)
    assert quarter == drawn_list(index, 25, seed=0) != drawn_list(index, 25, seed=1)
    part = only(index, quarter)
    assert np.bincount(part.labels).tolist() == [2, 2, 2] and len(drawn_list(index, 1, 0)) == 3
    assert all(path.startswith(part.classes[label]) for path, label in zip(part.paths, part.labels, strict=True))


def test_published_lists_are_read_by_name(folder, tmp_path):
    index = index_folder(folder / "train")
    for n, path in enumerate((folder / "train").rglob("*.png")):
        path.rename(path.with_name(f"{path.parent.name}_{n}.png"))
    index = index_folder(folder / "train")
    names = [Path(path).name for path in index.paths[::3]]
    listed = tmp_path / "1percent.txt"
    listed.write_text("\n".join(reversed(names)) + "\n")
    assert read_list(listed, index) == tuple(sorted(index.paths[::3]))
    assert list_sha256(read_list(listed, index)) == list_sha256(tuple(sorted(index.paths[::3])))
    listed.write_text("stranger.png\n")
    with pytest.raises(UserError, match=r"1percent.txt:1: 'stranger.png'"):
        read_list(listed, index)


# the command lines


def test_imagenet_command(folder, tmp_path, capsys):
    wanted = ["--protocol", "moco", "--protocol", "semi1", "--epochs", "2", "--train-batch", "8"]
    assert transfer.imagenet.main(arguments(folder, tmp_path / "out", *wanted)) == 0
    record = load_record(tmp_path / "out" / "imagenet-linear-moco-2ep-batch8@32px.json")
    assert record.protocol == "imagenet-linear/moco-2ep-batch8@32px"
    top1 = record.scores["top1"]
    assert top1.low <= top1 <= top1.high and len(record.settings["backbone_unmoved_sha256"]) == 64
    few = load_record(tmp_path / "out" / "imagenet-semi-swav-1pct-2ep-batch8@32px.json")
    assert few.data.counts["train_images"] == few.settings["labelled_images"] == 3
    lines = (tmp_path / "out" / "labels-1pct.txt").read_text().splitlines()
    assert list_sha256(tuple(lines)) == few.settings["labels_sha256"]
    assert few.settings["backbone_unmoved_sha256"] == ""


def make_places(folder, root):
    """The same images in the original layout of Places205."""
    (root / LISTS).mkdir(parents=True)
    for name in ("train", "val"):
        index = index_folder(folder / name)
        lines = [f"{name}/{path} {label}\n" for path, label in zip(index.paths, index.labels, strict=True)]
        (root / LISTS / f"{name}_places205.csv").write_text("".join(lines))
    (root / IMAGES).parent.mkdir(parents=True)
    folder.rename(root / IMAGES)
    return root


def test_places_in_either_layout_gives_the_same_score(folder, tmp_path, capsys):
    wanted = ["--protocol", "vissl", "--epochs", "1", "--train-batch", "8", "--image-px", "96"]
    assert transfer.places205.main(arguments(folder, tmp_path / "a", *wanted)) == 0
    original = make_places(folder, tmp_path / "original")
    assert transfer.places205.main(arguments(original, tmp_path / "b", *wanted)) == 0
    name = "places205-linear-vissl-1ep-batch8@96px.json"
    a, b = (load_record(tmp_path / where / name) for where in "ab")
    assert a.scores == b.scores and set(a.scores) == {"top1", *(f"res{n}/top1" for n in (2, 3, 4, 5))}
    assert a.scores["top1"] == max(a.scores.values()) and a.data.official is False


PLACES_FAULTS = {
    "no list": (lambda root: (root / LISTS / "val_places205.csv").unlink(), ["val_places205.csv", "both lists"]),
    "no label": (lambda root: (root / LISTS / "val_places205.csv").write_text("a.png\n"), ["csv:1", "PATH LABEL"]),
    "empty": (lambda root: (root / LISTS / "val_places205.csv").write_text("\n"), ["empty"]),
    "absent": (lambda root: (root / LISTS / "val_places205.csv").write_text("a.png 1\n"), ["lists a.png"]),
}


@pytest.mark.parametrize("fault", PLACES_FAULTS)
def test_faults_of_places_are_one_line(folder, tmp_path, capsys, fault):
    spoil, parts = PLACES_FAULTS[fault]
    root = make_places(folder, tmp_path / "original")
    spoil(root)
    assert_one_line_error(capsys, transfer.places205.main(arguments(root, tmp_path / "out")), *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tool", [transfer.imagenet, transfer.places205])
def test_faults_of_arguments_are_one_line(folder, tmp_path, capsys, tool):
    assert_one_line_error(capsys, tool.main(arguments(folder, tmp_path, "--protocol", "best")), "best", "adco")
    assert_one_line_error(capsys, tool.main(["--protocol", "adco"]), "--checkpoint is required")
    assert_one_line_error(capsys, tool.main(arguments(tmp_path / "nowhere", tmp_path)), "nowhere")
    assert tool.main(["--protocol", "list"]) == 0


def test_places_lists_number_their_classes(folder, tmp_path):
    train_part, val, digest = read_places(make_places(folder, tmp_path / "original"))
    assert train_part.classes == val.classes == ("0", "1", "2") and len(digest) == 64
    assert isinstance(PLACES205["vissl"], ClassifierProtocol)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["moco", "semi10"])
def test_two_ranks_are_one_process(folder, tmp_path, protocol):
    """A frozen backbone: the same scores and losses as alone. A tuned one: the ranks agree and it trains."""
    more = ["--protocol", protocol, "--epochs", "2", "--train-batch", "8"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    for where, start in (("one", [sys.executable]), ("two", torchrun)):
        command = [*start, str(ROOT / "transfer" / "imagenet.py"), *arguments(folder, tmp_path / where, *more)]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=300)
    one, two = (json.loads(next((tmp_path / w).glob("*.json")).read_text()) for w in ("one", "two"))
    assert two["settings"]["ranks"] == 2 and one["settings"]["ranks"] == 1
    if protocol == "moco":
        assert one["scores"] == two["scores"]
        losses = [[row["loss"] for row in record["settings"]["history"]] for record in (one, two)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
