"""A detection run as a result record."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode

from adco.data.datasets.check import OFFICIAL
from adco.evaluation.provenance import versions
from adco.evaluation.records import Predictions, Record
from adco.utils.files import sha256_of
from detection.config import NORM_OWNERS
from detection.weights import origin_of


def flat_scores(results: Mapping[str, Mapping]) -> tuple[dict[str, float], list[str]]:
    """detectron2's results as one level: `AP`, `AP50`, `segm/AP`, ... and, by class, `AP/cat`, `segm/AP/cat`.

    Returns (scores, names of the undefined ones): NaN is how detectron2 says that there was nothing to measure. A class
    without a box is left out. With several test datasets the names begin with the dataset's.
    """
    scores, undefined = {}, []
    for task, values in results.items():
        if any(isinstance(value, Mapping) for value in values.values()):
            inner, missing = flat_scores(values)
            scores |= {f"{task}/{name}": value for name, value in inner.items()}
            undefined += [f"{task}/{name}" for name in missing]
            continue
        for name, value in values.items():
            label = name.replace("-", "/", 1)  # detectron2 writes AP-cat
            label = label if task == "bbox" else f"{task}/{label}"
            if math.isfinite(value):
                scores[label] = float(value)
            elif "-" not in name:
                undefined.append(label)
    return scores, undefined


def make_record(
    cfg: CfgNode,
    config_name: str,
    results: Mapping[str, Mapping],
    weights: str,
    data: Sequence[Mapping[str, object]],
    settings: Mapping[str, object],
    duration_seconds: float,
    predictions: Predictions | None = None,
) -> Record:
    """The record of one run; `settings` adds what the config does not know (tensors loaded, overrides, GPUs)."""
    scores, undefined = flat_scores(results)
    train = [dict(facts) for facts in data if facts["name"] in cfg.DATASETS.TRAIN]
    test = [dict(facts) for facts in data if facts["name"] in cfg.DATASETS.TEST]
    return Record(
        protocol=protocol_of(config_name),
        scores=scores,
        checkpoint=describe_weights(weights, cfg.MODEL.RESNETS.DEPTH),
        data={
            "name": "+".join(cfg.DATASETS.TEST),
            "fingerprint": "+".join(str(facts["fingerprint"]) for facts in test),
            "official": all(official(facts) for facts in (*train, *test)),
            "train": train,
            "test": test,
        },
        settings=describe_settings(cfg) | dict(settings) | {"undefined_scores": undefined},
        duration_seconds=round(duration_seconds, 2),
        versions=versions() | {"detectron2": detectron2_version()},
        predictions=predictions,
    )


def official(facts: Mapping[str, object]) -> bool:
    """Whether a dataset has as many images as the official release behind its name, e.g. `voc_2007_test`."""
    kind, year, split = [*str(facts["name"]).split("_"), "", ""][:3]
    name = f"VOC{year} {split}" if kind == "voc" else f"{kind.upper()} {split}{year}"
    return name in OFFICIAL and facts["images"] == OFFICIAL[name][0]


def protocol_of(config_name: str) -> str:
    """`detection/NAME`: twins of one config differ in their initial weights, which a record names, not in protocol."""
    return f"detection/{re.sub(r'_(adco|supervised|random)$', '', config_name)}"


def describe_weights(weights: str, depth: int) -> dict[str, object]:
    """{name, sha256, arch, origin} of MODEL.WEIGHTS; origin is the checkpoint that a converted file came from."""
    arch = f"resnet{depth}"
    path = Path(weights)
    if not weights:
        return {"name": "random initialisation", "sha256": "", "arch": arch, "source": "random"}
    if not path.is_file():
        return {"name": weights, "sha256": "", "arch": arch, "source": "fetched by detectron2"}
    facts = {"name": path.name, "sha256": sha256_of(path), "arch": arch, "source": "file"}
    origin = origin_of(path)
    return facts | {"source": "converted", "origin": origin} if origin else facts


def describe_settings(cfg: CfgNode) -> dict[str, object]:
    """The choices in the config that can move the score."""
    return {
        "iterations": cfg.SOLVER.MAX_ITER,
        "steps": list(cfg.SOLVER.STEPS),
        "warmup_iterations": cfg.SOLVER.WARMUP_ITERS,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "lr": cfg.SOLVER.BASE_LR,
        "norm": cfg.MODEL.RESNETS.NORM,
        "norms": {owner: cfg.MODEL[owner].NORM for owner in NORM_OWNERS if cfg.MODEL[owner].NORM},
        "mixed_precision": cfg.SOLVER.AMP.ENABLED,
        "tf32_convolutions": cfg.MODEL.DEVICE.startswith("cuda") and torch.backends.cudnn.allow_tf32,
        "image_px_train": list(cfg.INPUT.MIN_SIZE_TRAIN),
        "image_px_test": cfg.INPUT.MIN_SIZE_TEST,
        "precise_bn_iterations": cfg.TEST.PRECISE_BN.NUM_ITER if cfg.TEST.PRECISE_BN.ENABLED else 0,
        "seed": cfg.SEED,
        "device": cfg.MODEL.DEVICE,
    }


def detectron2_version() -> str:
    """Version, distribution and, for a Git installation, the commit of detectron2."""
    for name in ("detectron2", "pb1-detectron2"):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        address = json.loads(distribution.read_text("direct_url.json") or "{}")
        commit = address.get("vcs_info", {}).get("commit_id")
        return f"{distribution.version} ({name}{' at ' + commit if commit else ''})"
    return "unknown"
