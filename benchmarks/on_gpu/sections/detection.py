"""Section 10: training iterations of detectron2's detectors with this project's configs, on a few drawn images."""

from __future__ import annotations

import gc
import math
import statistics
import time
from pathlib import Path

import torch

from adco.sample.layouts import draw, jobs, make_folders, write_lists
from adco.utils.device import usable_cores
from adco.utils.errors import UserError
from benchmarks.on_gpu.sections import Context

CONFIGS = Path(__file__).resolve().parent.parent.parent.parent / "detection" / "configs"
# (name of the figures, config, its miniature, data, images of an iteration). In the protocols a GPU has 2 images.
CASES = (
    ("c4_2_images", "pascal_voc_R_50_C4_24k_random", "smoke_voc_R_18_C4_random", "gpu_voc", 2),
    ("fpn_2_images", "coco_R_50_FPN_1x_random", "smoke_coco_R_18_FPN_random", "gpu_coco", 2),
    ("c4_16_images", "pascal_voc_R_50_C4_24k_random", "smoke_voc_R_18_C4_random", "gpu_voc", 16),
    ("fpn_16_images", "coco_R_50_FPN_1x_random", "smoke_coco_R_18_FPN_random", "gpu_coco", 16),
)
ITERATIONS, UNMEASURED = 20, 5


def run(context: Context) -> None:
    """Time the cases while there is time; reports why when detectron2 cannot be imported."""
    try:  # the package `detection` patches detectron2, so it comes first
        from detection.register import setup_environment

        setup_environment()
    except (ImportError, UserError) as error:
        context.skip("detectron2", str(error))
        return
    register(context.work / "detection")
    for number, (name, config, miniature, data, images) in enumerate(CASES[:2] if context.small else CASES):
        if number and context.left() < 5:
            context.skip(name, "no time is left")
            continue
        try:
            measure(context, name, miniature if context.small else config, data, images)
        except torch.cuda.OutOfMemoryError as error:
            context.skip(name, f"out of memory: {error}")
        except FloatingPointError as error:
            context.report(f"{name}_loss_is_finite", False, reason=str(error))
        gc.collect()  # a trainer is in reference cycles
        torch.cuda.empty_cache()


def register(folder: Path) -> None:
    """Draw 20 images each of VOC and COCO, unless they are there, and register them with detectron2."""
    from detectron2.data.datasets import register_coco_instances, register_pascal_voc

    wanted = [job for job in jobs(100) if (job.layout, job.subset) in (("VOC2007", "trainval"), ("coco", "train"))]
    annotations = folder / "coco" / "annotations" / "instances_train2017.json"
    if not annotations.is_file():
        make_folders(folder, wanted)
        write_lists(folder, [(job, draw(folder, 0, job)) for job in wanted])
    register_pascal_voc("gpu_voc", str(folder / "VOCdevkit" / "VOC2007"), "trainval", 2007)
    register_coco_instances("gpu_coco", {}, str(annotations), str(folder / "coco" / "train2017"))


def measure(context: Context, name: str, config: str, data: str, images: int) -> None:
    """Train for some iterations from random weights at the warm-up's learning rate; report time, memory and loss."""
    from detectron2.utils.events import EventStorage

    from detection.trainer import Trainer

    trainer = Trainer(configured(context, config, data, images))
    gpu, taken = context.device.type == "cuda", []
    if gpu:
        torch.cuda.reset_peak_memory_stats(context.device)
    with EventStorage(0) as storage:
        for iteration in range(2 if context.small else UNMEASURED + ITERATIONS):
            begin = time.perf_counter()
            trainer.iter = iteration
            trainer.run_step()
            if gpu:
                torch.cuda.synchronize(context.device)
            taken.append(time.perf_counter() - begin)
            if iteration > UNMEASURED and context.left() < 0:
                break
        loss, waits = (storage.latest()[key][0] for key in ("total_loss", "data_time"))
    measured = taken[min(UNMEASURED, len(taken) - 1) :]
    second = statistics.median(measured)
    settings = {"config": config, "images": images, "amp": gpu, "iterations": len(measured), "last_data_wait": waits}
    context.report(f"{name}_iteration", second, "s", most=max(measured), least=min(measured), **settings)
    context.report(f"{name}_rate", images / second, "images/s")
    context.report(f"{name}_loss_is_finite", math.isfinite(loss), loss=loss)
    if gpu:
        context.report(f"{name}_peak_memory", torch.cuda.max_memory_allocated(context.device) / 2**30, "GiB")


def configured(context: Context, config: str, data: str, images: int):
    """The config for this device, with mixed precision on a GPU, that evaluates and saves nothing."""
    from detection.config import fit_to_hardware, load_config

    gpu = context.device.type == "cuda"
    cfg = load_config(str(CONFIGS / f"{config}.yaml"), [])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (data,), ()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE = images, 0
    cfg.SOLVER.AMP.ENABLED = gpu
    cfg.TEST.PRECISE_BN.ENABLED = False
    cfg.DATALOADER.NUM_WORKERS = min(8, usable_cores()) if gpu else 0
    cfg.OUTPUT_DIR = str(context.work / "detection" / "output")
    fit_to_hardware(cfg, int(gpu))
    cfg.MODEL.DEVICE = str(context.device)
    cfg.freeze()
    return cfg
