"""transfer/knn.py and transfer/linear.py on an image folder, and the reading of that folder."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import transfer.knn
import transfer.linear
from adco.evaluation.knn import knn_accuracy
from adco.evaluation.records import load_record
from adco.utils import philox
from adco.weights.backbone import load_backbone
from tests.transfer.data import assert_one_line_error, files_below, make_folder
from transfer.features.extract import Feature, ImageList, Reader, extract
from transfer.features.image_folder import Split, fingerprint, read_folders
from transfer.features.transforms import Transform
from transfer.linear import LEARNING_RATES, WEIGHT_DECAYS, choose, held_out_rows, probe, standardiser, sweep

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "shapes")


def arguments(folder, out, *more):
    fixed = ["--checkpoint", "random:resnet18", "--image-px", "32", "--device", "cpu", "--workers", "0"]
    return [*fixed, "--data", str(folder), "--output-dir", str(out), *more]


# the folder


def test_val_labels_are_numbered_as_in_training(folder):
    """val lacks `bird`: its cats are still class 1."""
    for path in (folder / "val" / "bird").iterdir():
        path.unlink()
    (folder / "val" / "bird").rmdir()
    train, val = read_folders(folder)
    assert val.classes == train.classes == ("bird", "cat", "dog")
    assert {path.split("/")[0]: label for path, label in zip(val.paths, val.labels, strict=True)} == {
        "cat": 1,
        "dog": 2,
    }


def test_fingerprint_does_not_depend_on_the_place_but_on_the_images(folder, tmp_path):
    moved = folder.rename(tmp_path / "moved")
    before = fingerprint(read_folders(moved))
    assert fingerprint(read_folders(make_folder(folder))) == before
    (folder / "val" / "dog" / "0.png").rename(folder / "val" / "cat" / "9.png")
    assert fingerprint(read_folders(folder)) != before


def move(source, target):
    return lambda folder: (folder / source).rename(folder / target)


def flatten(folder):
    move("train", "old")(folder)
    move("old/cat", "train")(folder)


def spoil_an_image(folder):
    (folder / "val" / "dog" / "2.png").write_bytes(b"x")


FAULTS = {
    "no val": (move("val", "test"), ["val", "no such image folder"]),
    "class only in val": (move("val/cat", "val/cow"), ["'cow'", "train"]),
    "flat folder": (flatten, ["train", "no class folder"]),
    "image broken": (spoil_an_image, ["2.png", "--max-bad-share"]),
}


@pytest.mark.parametrize("tool", [transfer.knn, transfer.linear])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line(folder, tmp_path, capsys, fault, tool):
    spoil, parts = FAULTS[fault]
    spoil(folder)
    options = ["--k", "1"] if tool is transfer.knn else []
    assert_one_line_error(capsys, tool.main(arguments(folder, tmp_path / "out", *options)), *parts)
    assert not list((tmp_path / "out").glob("*.json"))


# kNN


def test_knn_writes_a_record_per_k(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert transfer.knn.main(arguments(folder, out, "--k", "1", "--k", "5")) == 0
    train, val = read_folders(folder)
    feature, rows = Feature(Transform("center", 32, 37)), []
    for index, name in ((train, "train"), (val, "val")):
        images = ImageList(index.root, index.paths, name)
        done = extract(load_backbone("random:resnet18"), images, [feature], tmp_path / "own", Reader(CPU, workers=0))
        rows.append(normalize(torch.from_numpy(done.rows[feature])))
    labels, val_labels = torch.tensor(train.labels), torch.tensor(val.labels)
    for k in (1, 5):
        record = load_record(out / f"knn-k{k}-t0.07@32px.json")
        assert record.protocol == f"knn/k{k}-t0.07@32px"
        assert record.scores == {"top1": knn_accuracy(rows[0], labels, rows[1], val_labels, k, 0.07, 3)}
        assert record.scores["top1"] > 50  # three colours: an untrained network tells them apart
        assert record.data.counts == {"train_images": 24, "val_images": 12, "classes": 3}
        assert f"knn/k{k}-t0.07@32px: top1 {record.scores['top1']:.2f} %" in capsys.readouterr().out or k == 5


def test_knn_without_a_deviation_has_the_plain_name(folder, tmp_path):
    small = make_folder(tmp_path / "two", train=1, val=1)
    given = arguments(small, tmp_path / "out", "--k", "2", "--image-px", "224", "--temperature", "0.1")
    assert transfer.knn.main(given) == 0
    assert load_record(tmp_path / "out" / "knn-k2-t0.1.json").protocol == "knn/k2-t0.1"


@pytest.mark.parametrize(("more", "part"), [(["--k", "25"], "--k 25"), (["--k", "0"], "--k 0"), ([], "--k 200"),
                                            (["--k", "1", "--temperature", "0"], "--temperature 0")])  # fmt: skip
def test_knn_refuses_the_impossible_before_any_work(folder, tmp_path, capsys, more, part):
    code = transfer.knn.main(arguments(folder, tmp_path / "out", *more))
    assert_one_line_error(capsys, code, part)
    assert not (tmp_path / "out").exists()


# the linear probe


def blobs(n=120, d=6, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return generator.standard_normal((n, d)) + 1.5 * generator.standard_normal((classes, d))[labels], labels


@pytest.mark.parametrize(("rate", "decay"), [(0.1, 0.0), (1.0, 0.01)])
def test_each_classifier_of_a_sweep_is_what_torch_trains_alone(rate, decay, monkeypatch):
    """torch's SGD, one classifier, the same batches: the same weights as inside a sweep of six."""
    monkeypatch.setattr(transfer.linear, "EPOCHS", 3)
    monkeypatch.setattr(transfer.linear, "BATCH", 32)
    x, labels = (torch.from_numpy(array) for array in blobs())
    rates, decays = (0.1, 1.0), (0.0, 0.001, 0.01)
    made = sweep(x, labels, 3, rates, decays, seed=5)
    at = rates.index(rate) * 3 + decays.index(decay)
    layer = torch.nn.Linear(6, 3).double()
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias]}]
    optimiser = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    for step in range(12):
        order = torch.from_numpy(philox.permutation(5, step // 4, 120))
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / 12))
        rows = order[32 * (step % 4) : 32 * (step % 4) + 32]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(layer(x[rows]), labels[rows]).backward()
        optimiser.step()
    torch.testing.assert_close(made.weight[at], layer.weight.T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(made.bias[at, 0], layer.bias, rtol=1e-9, atol=1e-12)


def test_held_out_rows_are_a_tenth_of_each_class_by_seed():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 2, 1])
    held = held_out_rows(labels, 0.1, seed=0)
    assert [int(held[labels == c].sum()) for c in range(4)] == [10, 5, 1, 0]
    np.testing.assert_array_equal(held, held_out_rows(labels, 0.1, seed=0))
    assert (held != held_out_rows(labels, 0.1, seed=1)).any()


def test_the_pair_is_chosen_on_training_images_only(monkeypatch):
    monkeypatch.setattr(transfer.linear, "EPOCHS", 5)
    x, labels = blobs(n=300, d=4, seed=3)
    x = np.concatenate([x, 2 * np.random.default_rng(4).standard_normal((300, 100))], axis=1).astype(np.float32)
    train, val = Split(x[:200], labels[:200]), Split(x[200:], labels[200:])
    scores, settings, hits = probe(train, val, 3, seed=0, device=CPU)
    assert 100 * hits["top1"].mean() == scores["top1"] and hits["top1"].shape == (100,)
    worse, same, _ = probe(train, Split(val.features, (val.labels + 1) % 3), 3, seed=0, device=CPU)
    assert same["curve"] == settings["curve"] and worse["top1"] < scores["top1"]
    curve = settings["curve"]
    assert len(curve) == len(LEARNING_RATES) * len(WEIGHT_DECAYS)
    best = max(row["held_out_top1"] for row in curve)
    first = next(row for row in curve if row["held_out_top1"] == best)
    assert (settings["lr"], settings["weight_decay"]) == (first["lr"], first["weight_decay"])
    assert choose(standardiser(train.features, CPU)(train.features), train.labels, 3, 0)[:2] == (
        first["lr"],
        first["weight_decay"],
    )
    assert scores["top1"].low < scores["top1"] < scores["top1"].high


def test_standardiser_leaves_dead_dimensions_at_zero():
    features = np.array([[1.0, 5.0], [3.0, 5.0]], dtype=np.float32)
    assert standardiser(features, CPU)(features).tolist() == [[-1.0, 0.0], [1.0, 0.0]]


def test_linear_command(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert transfer.linear.main(arguments(folder, out)) == 0
    record = load_record(out / "linear-cached-features@32px.json")
    assert record.protocol == "linear/cached-features@32px"
    assert record.scores["top1"] > 50 and record.settings["lr"] in LEARNING_RATES
    assert f"top1 {record.scores['top1']:.2f} %" in capsys.readouterr().out
    first = files_below(out / "features")
    assert transfer.linear.main(arguments(folder, out)) == 0  # again: same features, same score
    assert files_below(out / "features") == first
    again = load_record(out / "linear-cached-features@32px.json")
    assert again.scores == record.scores
    assert (record.settings["pictures_computed"], again.settings["pictures_computed"]) == (36, 0)


def test_linear_needs_two_classes(folder, tmp_path, capsys):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / split / name).rename(tmp_path / f"{split}-{name}")
    assert_one_line_error(capsys, transfer.linear.main(arguments(folder, tmp_path / "out")), "one class only")
