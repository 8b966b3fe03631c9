"""Training and evaluation of a detector in one process: detectron2's DefaultTrainer with gradient accumulation, the
protocol's evaluators, and a result record.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import detectron2.utils.comm as comm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, default_setup
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils.events import EventStorage
from torch import nn

from adco.evaluation.provenance import code_version
from adco.utils.errors import UserError
from detection import coco_eval, register
from detection.batch_scaling import BatchPlan
from detection.config import first_line
from detection.evaluation import build_evaluator
from detection.gradient_accumulation import accumulated_step
from detection.predictions import move_beside
from detection.record import make_record
from detection.safe_loading import backbone_tensors_loaded
from detection.verify import every_tensor_loads
from detection.weights import tensor_names


@dataclass(frozen=True)
class DetectionRun:
    """What every process of a run needs besides the config.

    Attributes:
        config_name: Name of the config file without the suffix.
        overrides: Overrides that may make the run differ from its protocol, each as `KEY VALUE`.
        gpus: GPUs of this machine; 0 for the CPU.
        plan: How the batch is divided among processes and passes.
        data: What `inspect_dataset` says of each dataset, collected once by the process that starts the others.
        evaluator: The implementation of COCOeval, one of `coco_eval.EVALUATORS`.
        started: Time of the start, in seconds since the epoch.
    """

    config_name: str
    overrides: tuple[str, ...]
    gpus: int
    plan: BatchPlan
    data: tuple[Mapping[str, object], ...]
    evaluator: str
    started: float

    def settings(self) -> dict[str, object]:
        """The part of a record's settings that the config does not have."""
        plan = {name: value for name, value in asdict(self.plan).items() if name != "differences"}
        return {
            "overrides": list(self.overrides),
            "gpus": self.gpus,
            "plan": plan | {"differences": list(self.plan.differences), "images_per_pass": self.plan.images_per_pass},
            "coco_evaluator": self.evaluator,
        }


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer with gradient accumulation and the protocol's evaluators.

    Args:
        cfg: The config.
        passes: Passes of one optimiser step; more than one accumulates gradients.
    """

    _last_eval_results: dict[str, dict]  # set by the evaluation hook of DefaultTrainer

    def __init__(self, cfg: CfgNode, passes: int = 1):
        self.passes = passes
        super().__init__(cfg)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """The evaluator of a data set, which keeps the detections."""
        return build_evaluator(dataset_name, Path(output_folder or Path(cfg.OUTPUT_DIR) / "inference"))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """detectron2's loader, with pinned memory on a GPU."""
        return pin_memory(super().build_train_loader(cfg), cfg.MODEL.DEVICE.startswith("cuda"))

    def build_hooks(self) -> list:
        """detectron2's hooks; PreciseBN uses as many images as with the config's batch, in batches of one pass."""
        cfg, self.cfg = self.cfg, precise_bn_settings(self.cfg, self.passes)
        try:
            return super().build_hooks()
        finally:
            self.cfg = cfg

    def train(self) -> None:
        """Train as DefaultTrainer does, but leave the check of TEST.EXPECTED_RESULTS to `run`, after the record."""
        TrainerBase.train(self, self.start_iter, self.max_iter)

    def run_step(self) -> None:
        """One step, in several passes if the batch does not fit."""
        if self.passes == 1:
            super().run_step()
        else:
            self._trainer.iter = self.iter
            accumulated_step(self._trainer, self.passes)


def precise_bn_settings(cfg: CfgNode, passes: int) -> CfgNode:
    """A copy of the config with the batch of one pass, and PreciseBN's number of batches times `passes`."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH //= passes
    cfg.TEST.PRECISE_BN.NUM_ITER *= passes
    cfg.freeze()
    return cfg


def pin_memory(loader, pin: bool):
    """Set `pin_memory` of the DataLoader inside detectron2's training loader, which has no option for it."""
    inner = loader
    while not isinstance(inner, torch.utils.data.DataLoader):
        inner = inner._dataset if hasattr(inner, "_dataset") else inner.dataset
    inner.pin_memory = pin
    return loader


def run(cfg: CfgNode, args: argparse.Namespace, job: DetectionRun) -> None:
    """One process of the run: train (or only evaluate), print detectron2's tables, write OUTPUT_DIR/record.json.

    Raises:
        UserError: The loss became NaN or infinite.
        SystemExit: The results differ from TEST.EXPECTED_RESULTS (exit code 1); the record is written before.
    """
    register.setup_environment()  # not yet called in a spawned process
    code_version("detection")  # cached: the record gets the version of the files as they are now
    coco_eval.use(job.evaluator)
    default_setup(cfg, args)
    try:
        results, weights, facts = (
            evaluate_only(cfg, args.resume) if args.eval_only else train(cfg, args.resume, job.plan.passes)
        )
    except FloatingPointError as error:
        raise UserError(f"training diverged ({first_line(error)}); lower SOLVER.BASE_LR") from error
    if not comm.is_main_process():
        return
    settings = job.settings() | facts | {"eval_only": args.eval_only, "resumed": args.resume}
    path = Path(cfg.OUTPUT_DIR) / "record.json"
    matches = move_beside(path) if len(cfg.DATASETS.TEST) == 1 else None
    seconds = time.time() - job.started
    record = make_record(cfg, job.config_name, results, weights, job.data, settings, seconds, matches)
    print(f"record: {record.write(path)}", flush=True)
    verify_results(cfg, results)  # exits with code 1 if they differ from TEST.EXPECTED_RESULTS


def train(cfg: CfgNode, resume: bool, passes: int) -> tuple[dict, str, dict]:
    """Train and test.

    Args:
        cfg: The config.
        resume: Whether to continue from the last checkpoint in OUTPUT_DIR.
        passes: As for `Trainer`.

    Returns:
        (detectron2's results of the final test, the initial weights, {backbone_tensors_loaded, speed}).
    """
    trainer = Trainer(cfg, passes)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    loaded = backbone_tensors_loaded(trainer.checkpointer)
    facts = {"backbone_tensors_loaded": loaded, "speed": speed(trainer.storage)}
    return trainer._last_eval_results, cfg.MODEL.WEIGHTS, facts


def evaluate_only(cfg: CfgNode, resume: bool) -> tuple[dict, str, dict]:
    """Test without training; the weights must be those of a complete detector.

    Returns:
        (detectron2's results, the file that was tested, {backbone_tensors_loaded}).

    Raises:
        UserError: A tensor of the detector is not in the file.
    """
    model: nn.Module = Trainer.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    path = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else cfg.MODEL.WEIGHTS
    with every_tensor_loads(model, tensor_names(model) if path else [], path):
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return Trainer.test(cfg, model), path, {"backbone_tensors_loaded": backbone_tensors_loaded(checkpointer)}


def speed(storage: EventStorage) -> dict[str, float]:
    """Speed of a training, from what detectron2's hooks measured.

    Returns:
        {iterations_per_second, loading_share, memory_gib}: loading_share is the part of the time, in [0, 1], that was
        spent waiting for data; memory_gib is the peak on this process's GPU, left out without CUDA. {} if the hooks
        measured nothing.
    """
    histories = storage.histories()
    if not {"time", "data_time"} <= histories.keys():
        return {}
    seconds, waiting = (histories[name].global_avg() for name in ("time", "data_time"))
    facts = {"iterations_per_second": round(1 / seconds, 4), "loading_share": round(min(waiting / seconds, 1), 4)}
    if torch.cuda.is_available():
        facts["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return facts
