"""A full set of made-up results: five methods with three seeds, records, curves, a bank's map, broken files."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adco.config.loading import load_recipe
from adco.config.schema import PretrainConfig
from adco.evaluation.predictions import write_hits
from adco.evaluation.records import Record, Score

METHODS = {"adco": 52.0, "moco": 48.0, "caco": 51.0, "simclr": 46.5, "byol": 49.5}
SEEDS = 3
TESTED = 3925
EPOCHS = (1, 2, 5, 10, 20, 50)
CLASSES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
HARDWARE = "2 cores of a processor, no GPU"
IMAGENETTE = {"name": "imagenette160", "fingerprint": "a" * 64, "train_images": 9469, "val_images": 3925}
VOC = {
    "name": "VOC2007", "fingerprint": "b" * 64, "official": False, "trainval_images": 400, "test_images": 200,
    "trainval_official": 5011, "test_official": 4952,
}  # fmt: skip


def make_results(root: Path, runs: bool = True) -> Path:
    """Write all of it below `root`; returns `root`."""
    rng = np.random.default_rng(0)
    for method, level in METHODS.items():
        for seed in range(SEEDS):
            folder, at = root / f"{method}_s{seed}", level + rng.normal(0, 0.5)
            _records(folder, method, seed, at, rng)
            if runs:
                _run(root / "runs" / f"{method}_s{seed}", method, seed, at)
    _small(root / "evidence")
    _map(root / "figure2")
    _broken(root / "broken")
    return root


def score(value: float, half: float = 1.5) -> Score:
    return Score.over_images(value, (value - half, value + half))


def record(protocol: str, scores: dict, name: str = "adco_s0", data: dict = IMAGENETTE, **more: Any) -> Record:
    checkpoint = {"name": f"{name}.pth", "sha256": f"{sum(name.encode()):064x}", "arch": "resnet18", "method": name[:4]}
    made: dict[str, Any] = {
        "hardware": HARDWARE,
        "commit": "c" * 40,
        "code": "1",
        "versions": {},
        "command": "transfer/knn.py",
    }
    return Record(protocol, scores, checkpoint, data, **made | more)


def _records(folder: Path, method: str, seed: int, level: float, rng: np.random.Generator) -> None:
    name = f"{method}_s{seed}"
    folder.mkdir(parents=True)
    for k in (20, 200):
        hits = np.arange(TESTED) < TESTED * (level - k / 50) / 100  # the same easy images for all
        kept = write_hits(folder / f"k{k}.npz", [f"{i}.jpg" for i in range(TESTED)], {"top1": hits})
        scores = {"top1": score(100 * hits.mean()), "top5": score(80)}
        record(f"knn/k{k}-t0.07@64px", scores, name, predictions=kept).write(folder / f"k{k}.json")
    record("linear/cached-features@64px", {"top1": score(level + 6)}, name).write(folder / "linear.json")
    classes = {f"AP/{c}": score(float(np.clip(level - 20 + rng.normal(0, 15), 2, 95)), 6) for c in CLASSES}
    for protocol in ("pcl@64px", "vissl@64px"):
        scores = {"mAP": score(level - 20, 3), **classes}
        record(f"voc07-svm/{protocol}", scores, name, VOC).write(folder / f"svm-{protocol}.json")
    shots = {
        f"mAP/k{k}": Score.over_trials([level - 30 + 4 * math.log2(k) + d for d in (-1, 0, 1.5)]) for k in (1, 2, 4, 8)
    }
    record("voc07-lowshot/pcl@64px", shots, name, VOC).write(folder / "lowshot.json")
    if method != "simclr":  # one that was not run
        trials = {
            n: Score.over_trials([v - 0.3, v, v + 0.4]) for n, v in (("AP", 0.2 * level), ("AP50", level), ("AP75", 9))
        }
        record("detection/smoke_voc_R_18_C4", trials, name, VOC).write(folder / "detection.json")


@functools.cache
def _recipe(method: str) -> PretrainConfig:
    return load_recipe(f"{method}_r18_imagenette", [f"epochs={max(EPOCHS)}", "data.root=imagenette160"])


def _run(folder: Path, method: str, seed: int, level: float) -> None:
    folder.mkdir(parents=True)
    recipe = replace(_recipe(method), seed=seed)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    lag = 8 if method == "adco" else 12
    rows = [{"step": 100 * e, "epoch": e, "loss": 9 / (1 + e), "images_per_second": 60.0 + e % 3} for e in EPOCHS]
    rows += [
        {"step": 100 * e, "epoch": e, "knn_top1": 30 + (level - 30) * (1 - math.exp(-e / lag)) + math.sin(seed + e)}
        for e in EPOCHS
    ]
    rows.sort(key=lambda row: row["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def short_run(path: Path, level: float, half: float = 1.5, **change: object) -> None:
    """kNN and linear top-1 of a short run of `adco` with a changed bank or contrast, as accuracy_curve.py writes."""
    recipe = {"method": "adco", "bank": {"size": 8192, "lr": 3.0}, "contrast": {"symmetric": False}, "seed": 0}
    for key, value in change.items():
        section, _, name = key.partition("_")
        recipe[section] = {**recipe[section], name: value}
    for kind, protocol in (("knn", "knn-k20"), ("linear", "linear-cached-features")):
        settings = {"curve": [{"epoch": 5, "top1": level}], "pretraining": recipe}
        made = record(f"pretraining/curve-{protocol}@64px", {"top1": score(level, half)}, settings=settings)
        made.write(path.with_name(f"{path.parent.name}-{path.name}-s0-{kind}.json"))


def _small(folder: Path) -> None:
    """Table 5 in small with two of its runs, three ablations, and a pretraining on GPUs beside one on a processor."""
    seconds = {"adco": 110, "moco": 100, "byol": 180, "adco_k65536": 130, "adco_k8192": 112, "adco_sym": 170}
    scores = {f"seconds_per_epoch/{name}": float(value) for name, value in seconds.items()}
    scores |= {"bank_percent/adco_k65536": 14.5, "bank_percent/adco_k8192": 1.7, "step_mib/adco_k65536": 900.0}
    settings = {"arch": "resnet18", "px": 64, "batch": 64, "precision": "bf16", "rounds": 5, "images": 9469,
                "spread_of_rounds": {"adco_k8192": 0.25, "bank/adco": 0.9}}  # fmt: skip
    times = record("benchmark/table5-in-small", scores, "", {"name": "random pixels"}, settings=settings)
    times.write(folder / "table5" / "times.json")
    short_run(folder / "table5" / "k65536", 41.0, bank_size=65536)
    short_run(folder / "table5" / "k256-sym", 44.0, bank_size=256, contrast_symmetric=True)
    short_run(folder / "ablations" / "base", 40.0)
    short_run(folder / "ablations" / "bank_still", 39.0, bank_lr=0.0)
    short_run(folder / "ablations" / "symmetric_small", 45.0, bank_size=256, contrast_symmetric=True)
    machines = {"gpu": ("8 x NVIDIA H100", "auto"), "cpu": (HARDWARE, "auto"), "apart": ("1 x NVIDIA H100", "cpu")}
    for name, (hardware, device) in machines.items():
        recipe = asdict(replace(_recipe("adco"), device=device, epochs=50))
        made = record("pretrain/adco", {"loss": 2.0}, settings=recipe, hardware=hardware, duration_seconds=9000.0)
        made.write(folder / "trained" / f"{name}.json")


def _map(folder: Path) -> None:
    folder.mkdir(parents=True)
    shares = {"adco_s0": 0.041, "moco_s0": 0.187}
    runs = [
        {
            "name": name, "step": 7400, "method": name[:4], "outlier_share": share, "outlier_below_cosine": 0.4,
            "median_nearest_cosine": 0.7, "bank_rows": 8192, "queries": 2000, "bank_effective_rank": 40.0,
            "query_effective_rank": 38.0,
        }
        for name, share in shares.items()
    ]  # fmt: skip
    (folder / "bank.json").write_text(json.dumps({"runs": runs, "settings": {"rows": 2000, "images": 2000}}))
    Image.fromarray(np.full((300, 600, 3), 235, np.uint8)).save(folder / "bank.png")


def _broken(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "cut.json").write_text('{"schema": 2, "protocol": "knn/k20", "sco')
    (folder / "newer.json").write_text('{"schema": 99, "protocol": "knn/k20"}')
    (folder / "notes.json").write_text('{"a": 1}')  # somebody else's: neither a record nor broken
