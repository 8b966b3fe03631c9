"""The scripts as a user runs them, on a VOC of a few images: ours, and detectron2's stock one with the hook."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import detection  # noqa: F401
from adco.evaluation.records import load_record
from adco.weights.backbone import load_backbone
from detection.evaluation import DETECTIONS_FILE
from detection.visualize import main as draw
from detection.weights import to_detectron2, write_weights
from tests import ROOT
from tests.detection.helpers import make_coco, make_voc, save_torchvision

OURS = ROOT / "detection" / "train_net.py"
STOCK = Path(importlib.util.find_spec("detectron2").origin).parent.parent / "tools" / "train_net.py"
TINY = [
    "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0", "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.BASE_LR", "0.001", "TEST.PRECISE_BN.NUM_ITER", "1", "INPUT.MIN_SIZE_TRAIN", "(64,)",
    "INPUT.MIN_SIZE_TEST", "64", "MODEL.RPN.POST_NMS_TOPK_TEST", "8", "TEST.DETECTIONS_PER_IMAGE", "5",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    backbone = load_backbone(save_torchvision(folder / "net.pth", "resnet18"))
    write_weights(to_detectron2(backbone), backbone.describe(), folder / "net.pkl")
    return folder / "net.pkl"


def train(script, root, out, weights, *more, config="smoke_voc_R_18_C4", environment=None):
    """Run a train_net.py in a process of its own, from outside the checkout."""
    command = [sys.executable, str(script), "--config-file", str(ROOT / "detection" / "configs" / f"{config}.yaml")]
    options = [item for item in more if item.startswith("--")]
    overrides = [item for item in more if not item.startswith("--")]
    return subprocess.run(
        [*command, *options, *TINY, "MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(out), *overrides],
        cwd=root,
        env={**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"} | (environment or {}),
        capture_output=True,
        text=True,
    )


def test_train_evaluate_record_and_draw(tmp_path, weights, monkeypatch):
    root, out = make_voc(tmp_path), tmp_path / "out"
    run = train(OURS, root, out, weights, "--num-gpus=0")
    assert run.returncode == 0, run.stderr[-3000:]
    assert "backbone: 100 of 100 tensors loaded" in run.stdout
    assert "MODEL.RESNETS.NORM BN" in run.stdout
    assert "copypaste: AP,AP50,AP75,AP_present,AP50_present,AP75_present" in run.stdout
    record = load_record(out / "record.json")
    assert record.protocol == "detection/smoke_voc_R_18_C4"
    by_class = {f"{metric}/{name}" for metric in ("AP", "AP50") for name in ("cat", "dog")}
    assert set(record.scores) == {"AP", "AP50", "AP75", "AP_present", "AP50_present", "AP75_present"} | by_class
    assert record.checkpoint.origin.name == "net.pth"
    assert record.data.details["test"][0]["images"] == 5
    assert record.data.details["train"][0]["boxes"] == 16
    assert "SOLVER.MAX_ITER 3" in record.settings["overrides"]
    assert (record.settings["norm"], record.settings["backbone_tensors_loaded"]) == ("BN", 100)
    assert "plan: reference, batch 2 = 1 process(es) x 1 pass(es) x 2 image(s)" in run.stdout
    assert "differs from the recipe: SOLVER.MAX_ITER 160 -> 3" in run.stdout
    assert "SOLVER.MAX_ITER 160 -> 3" in record.settings["plan"]["differences"]
    assert json.loads((out / "inference" / DETECTIONS_FILE).read_text())

    from detectron2.data import DatasetCatalog
    from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances

    there = load_voc_instances(str(root / "VOC2007"), "test", CLASS_NAMES)
    monkeypatch.setattr(type(DatasetCatalog), "get", lambda catalog, name: there)
    assert draw([str(out), str(tmp_path / "boxes.png"), "--min-score", "0", "--images", "3"]) == 0
    assert (tmp_path / "boxes.png").read_bytes().startswith(b"\x89PNG")
    assert draw([str(tmp_path / "nothing"), str(tmp_path / "no.png")]) == 2


@pytest.mark.skipif(not STOCK.is_file(), reason="this detectron2 came without its tools")
def test_the_stock_script_runs_our_config_through_the_hook(tmp_path, weights):
    hook = {"DETECTRON2_ENV_MODULE": "detection.register", "PYTHONPATH": str(ROOT)}
    on_cpu = ("MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN")
    run = train(STOCK, make_voc(tmp_path), tmp_path / "out", weights, *on_cpu, environment=hook)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "copypaste: AP,AP50,AP75\n" in run.stdout
    assert (tmp_path / "out" / "model_final.pth").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not STOCK.is_file(), reason="this detectron2 came without its tools")
@pytest.mark.parametrize("config", ["smoke_coco_R_18_C4", "smoke_coco_R_18_FPN"])
def test_the_stock_script_runs_masks_too(tmp_path, weights, config):
    hook = {"DETECTRON2_ENV_MODULE": "detection.register", "PYTHONPATH": str(ROOT)}
    owners = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")[: 4 if "FPN" in config else 1]
    norms = [item for owner in owners for item in (f"MODEL.{owner}.NORM", "BN")]
    on_cpu = ("MODEL.DEVICE", "cpu", *norms)
    run = train(STOCK, make_coco(tmp_path), tmp_path / "out", weights, *on_cpu, config=config, environment=hook)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "backbone: 100 of 100 tensors loaded" in run.stdout
    assert run.stdout.count("copypaste: AP,AP50,AP75,APs,APm,APl") == 2


@pytest.mark.slow
@pytest.mark.skipif(not STOCK.is_file(), reason="this detectron2 came without its tools")
def test_the_stock_script_stops_at_half_a_backbone(tmp_path, weights):
    hook = {"DETECTRON2_ENV_MODULE": "detection.register", "PYTHONPATH": str(ROOT)}
    half = load_backbone("random:resnet18")
    arrays = {name: array for k, (name, array) in enumerate(to_detectron2(half).items()) if k % 2}
    write_weights(arrays, {}, tmp_path / "half.pkl")
    on_cpu = ("MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN")
    run = train(STOCK, make_voc(tmp_path), tmp_path / "out", tmp_path / "half.pkl", *on_cpu, environment=hook)
    assert run.returncode != 0
    assert "50 of 100 tensors were loaded" in run.stderr
    assert "Starting training" not in run.stdout


@pytest.mark.slow
def test_accumulation_trains_the_recipe_in_parts(tmp_path, weights):
    out = tmp_path / "out"
    run = train(OURS, make_voc(tmp_path), out, weights, "--num-gpus=0", "--images-per-gpu=1")
    assert run.returncode == 0, run.stderr[-3000:]
    assert "batch 2 = 1 process(es) x 2 pass(es) x 1 image(s)" in run.stdout
    settings = load_record(out / "record.json").settings
    assert (settings["plan"]["passes"], settings["batch"], settings["lr"]) == (2, 2, 0.001)


@pytest.mark.slow
def test_trials_make_one_record_and_go_on_where_they_stopped(tmp_path, weights):
    root, out = make_voc(tmp_path), tmp_path / "out"
    run = train(OURS, root, out, weights, "--num-gpus=0", "--trials=2")
    assert run.returncode == 0, run.stderr[-3000:]
    record = load_record(out / "record.json")
    assert record.settings["trials"] == 2
    assert {"AP", "AP50", "AP75"} <= set(record.scores) and record.scores["AP"].trials == 2
    first = (out / "trial_1" / "record.json").stat().st_mtime_ns
    run = train(OURS, root, out, weights, "--num-gpus=0", "--trials=3")
    assert run.returncode == 0, run.stderr[-3000:]
    assert "trial 3 of 3, seed 3" in run.stdout
    assert "trial 1 of" not in run.stdout
    assert (out / "trial_1" / "record.json").stat().st_mtime_ns == first
    assert [trial["seed"] for trial in load_record(out / "record.json").settings["each_trial"]] == [1, 2, 3]


@pytest.mark.slow
def test_missing_data_stops_before_training(tmp_path, weights):
    root = make_voc(tmp_path)
    (root / "VOC2007/JPEGImages/400001.jpg").unlink()
    run = train(OURS, root, tmp_path / "out", weights, "--num-gpus=0")
    assert run.returncode == 2
    assert run.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "400001.jpg: no such file" in run.stderr
    assert "iter" not in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("split", ["trainval", "test"])
def test_a_broken_image_ends_the_run_with_one_line(tmp_path, weights, split):
    """In the training loader's own process, or in the evaluation after training."""
    root = make_voc(tmp_path)
    for path in (root / "VOC2007" / "JPEGImages").glob(f"{len(split)}*.jpg"):
        path.write_bytes(path.read_bytes()[:-100])
    run = train(OURS, root, tmp_path / "out", weights, "--num-gpus=0", "DATALOADER.NUM_WORKERS", "1")
    assert run.returncode == 2, run.stderr[-3000:]
    assert "this image cannot be decoded" in run.stderr.strip().splitlines()[-1]
    assert "Traceback" not in run.stdout + run.stderr
    assert not (tmp_path / "out" / "record.json").exists()


@pytest.mark.slow
def test_resume_and_evaluate_only(tmp_path, weights):
    root, out = make_voc(tmp_path), tmp_path / "out"
    assert train(OURS, root, out, weights, "--num-gpus=0").returncode == 0
    first = load_record(out / "record.json").scores
    run = train(OURS, root, tmp_path / "again", out / "model_final.pth", "--num-gpus=0", "--eval-only")
    assert run.returncode == 0, run.stderr[-3000:]
    assert load_record(tmp_path / "again" / "record.json").scores == first
    run = train(OURS, root, out, weights, "--num-gpus=0", "--resume", "SOLVER.MAX_ITER", "5")
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Starting training from iteration 3" in run.stdout
    assert load_record(out / "record.json").settings["resumed"] is True
    run = train(OURS, root, tmp_path / "bare", weights, "--num-gpus=0", "--eval-only")
    assert run.returncode == 2
    assert "tensors were loaded" in run.stderr


@pytest.mark.slow
def test_expected_results_are_looked_at_when_the_record_is_written(tmp_path, weights):
    root, out = make_voc(tmp_path), tmp_path / "out"
    wrong = ("TEST.EXPECTED_RESULTS", "[['bbox', 'AP50', 99.0, 0.5]]")
    run = train(OURS, root, out, weights, "--num-gpus=0", *wrong)
    assert run.returncode == 1, run.stderr[-3000:]
    assert "Result verification failed!" in run.stdout
    record = load_record(out / "record.json")
    assert not [change for change in record.settings["overrides"] if "EXPECTED" in change]
    right = ("TEST.EXPECTED_RESULTS", f"[['bbox', 'AP50', {float(record.scores['AP50'])}, 0.01]]")
    run = train(OURS, root, tmp_path / "again", out / "model_final.pth", "--num-gpus=0", "--eval-only", *right)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Results verification passed." in run.stdout


@pytest.mark.slow
def test_two_seeded_runs_agree(tmp_path, weights):
    root = make_voc(tmp_path)
    for name in ("a", "b"):
        assert train(OURS, root, tmp_path / name, weights, "--num-gpus=0").returncode == 0
    predictions = [(tmp_path / name / "inference" / DETECTIONS_FILE).read_text() for name in ("a", "b")]
    assert predictions[0] == predictions[1]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["smoke_coco_R_18_C4_random", "smoke_coco_R_18_FPN_random"])
def test_masks_on_coco_from_random_weights(tmp_path, config):
    run = train(OURS, make_coco(tmp_path), tmp_path / "out", "", "--num-gpus=0", config=config)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "random initialisation" in run.stdout
    record = load_record(tmp_path / "out" / "record.json")
    assert {"AP", "AP50", "AP75", "segm/AP"} <= set(record.scores)
    assert record.checkpoint.source == "random"
