"""The result record of a finished run, from detectron2's scores, the config and the facts of the datasets."""

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
    """detectron2's nested results as one level of names.

    Args:
        results: Task -> metric -> value; with several test datasets, dataset -> task -> metric -> value.

    Returns:
        (scores, undefined): `AP`, `AP50`, `segm/AP`, ... and by class `AP/cat`, `segm/AP/cat`, after the dataset's name
        where there are several. undefined: names whose value is NaN, detectron2's value where there is nothing to
        measure; a class without boxes is left out of both.
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
    """The record of one run.

    Args:
        cfg: The config that was run.
        config_name: Its file's name without the suffix; the protocol follows from it.
        results: detectron2's results of the final test.
        weights: The initial weights (MODEL.WEIGHTS); of an evaluation only, the detector's file.
        data: What `inspect_dataset` says of each dataset.
        settings: Settings besides the config's, e.g. overrides, GPUs, tensors loaded.
        duration_seconds: Of the whole run.
        predictions: Reference to the file with the matches, as `move_beside` returns it.
    """
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
    """Whether a dataset has as many images as the official release of its name, e.g. `voc_2007_test`."""
    kind, year, split = [*str(facts["name"]).split("_"), "", ""][:3]
    name = f"VOC{year} {split}" if kind == "voc" else f"{kind.upper()} {split}{year}"
    return name in OFFICIAL and facts["images"] == OFFICIAL[name][0]


def protocol_of(config_name: str) -> str:
    """`detection/NAME`, the same for the variants of a config that differ only in the initial weights."""
    return f"detection/{re.sub(r'_(adco|supervised|random)$', '', config_name)}"


def describe_weights(weights: str, depth: int) -> dict[str, object]:
    """The `checkpoint` part of a record for MODEL.WEIGHTS: {name, sha256, arch, source, origin}.

    origin: the checkpoint that a converted file was made from, where the file says it.
    """
    arch = f"resnet{depth}"
    path = Path(weights)
    if not weights:
        return {"name": "random initialisation", "sha256": "", "arch": arch, "source": "random"}
    if not path.is_file():
        return {"name": weights, "sha256": "", "arch": arch, "source": "fetched by detectron2"}
    facts: dict[str, object] = {"name": path.name, "sha256": sha256_of(path), "arch": arch, "source": "file"}
    origin = origin_of(path)
    return facts | {"source": "converted", "origin": origin} if origin else facts


def describe_settings(cfg: CfgNode) -> dict[str, object]:
    """The settings of the config that can change the score."""
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
    """Version and distribution of detectron2 and, where it was installed from Git, the commit."""
    for name in ("detectron2", "pb1-detectron2"):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        address = json.loads(distribution.read_text("direct_url.json") or "{}")
        commit = address.get("vcs_info", {}).get("commit_id")
        return f"{distribution.version} ({name}{' at ' + commit if commit else ''})"
    return "unknown"
