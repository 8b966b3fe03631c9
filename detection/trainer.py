"""detectron2's DefaultTrainer with the protocol's evaluators, gradient accumulation, and speed in the record."""

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
from detection import register, scoring
from detection.batch_scaling import BatchPlan
from detection.evaluation import build_evaluator
from detection.gradient_accumulation import accumulated_step
from detection.predictions import keep_beside
from detection.record import make_record
from detection.verify import every_tensor_loads


@dataclass(frozen=True)
class DetectionRun:
    """What every process of a run needs besides the config.

    overrides: what was set beside the config file and may make the run differ from its protocol
    data: the datasets' facts, gathered once by the process that starts the others
    """

    config_name: str
    overrides: tuple[str, ...]
    gpus: int
    plan: BatchPlan
    data: tuple[Mapping[str, object], ...]
    evaluator: str
    started: float

    def settings(self) -> dict[str, object]:
        """What a record says of the run besides the config."""
        plan = {name: value for name, value in asdict(self.plan).items() if name != "differences"}
        return {
            "overrides": list(self.overrides),
            "gpus": self.gpus,
            "plan": plan | {"differences": list(self.plan.differences), "images_per_pass": self.plan.images_per_pass},
            "coco_evaluator": self.evaluator,
        }


class Trainer(DefaultTrainer):
    """DefaultTrainer whose batch may be taken in several passes, and whose evaluation is the protocol's."""

    def __init__(self, cfg: CfgNode, passes: int = 1):
        self.passes = passes
        super().__init__(cfg)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return build_evaluator(dataset_name, Path(output_folder or Path(cfg.OUTPUT_DIR) / "inference"))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return pin_memory(super().build_train_loader(cfg), cfg.MODEL.DEVICE.startswith("cuda"))

    def build_hooks(self) -> list:
        """detectron2's; PreciseBN sees as many images as the recipe's batches hold, in parts that fit the memory."""
        whole, self.cfg = self.cfg, precise_bn_settings(self.cfg, self.passes)
        try:
            return super().build_hooks()
        finally:
            self.cfg = whole

    def train(self) -> None:
        """DefaultTrainer's without its look at TEST.EXPECTED_RESULTS, which `run` takes once the record is written."""
        TrainerBase.train(self, self.start_iter, self.max_iter)

    def run_step(self) -> None:
        if self.passes == 1:
            super().run_step()
        else:
            self._trainer.iter = self.iter
            accumulated_step(self._trainer, self.passes)


def precise_bn_settings(cfg: CfgNode, passes: int) -> CfgNode:
    """A copy in which a batch is what one pass holds, and PreciseBN takes as many more of them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH //= passes
    cfg.TEST.PRECISE_BN.NUM_ITER *= passes
    cfg.freeze()
    return cfg


def pin_memory(loader, pin: bool):
    """Let the DataLoader inside detectron2's training loader pin its tensors, which detectron2 has no option for."""
    inner = loader
    while not isinstance(inner, torch.utils.data.DataLoader):
        inner = inner._dataset if hasattr(inner, "_dataset") else inner.dataset
    inner.pin_memory = pin
    return loader


def run(cfg: CfgNode, args: argparse.Namespace, job: DetectionRun) -> None:
    """One process of the run: train (or only evaluate), print detectron2's tables, write OUTPUT_DIR/record.json."""
    register.setup_environment()  # a spawned process has not done so yet
    code_version("detection")  # of the files as they are now: the record names it when the work is done
    scoring.use(job.evaluator)
    default_setup(cfg, args)
    try:
        results, weights, facts = (
            evaluate_only(cfg, args.resume) if args.eval_only else train(cfg, args.resume, job.plan.passes)
        )
    except FloatingPointError as error:
        raise UserError(f"training diverged ({str(error).splitlines()[0]}); lower SOLVER.BASE_LR") from error
    if not comm.is_main_process():
        return
    settings = job.settings() | facts | {"eval_only": args.eval_only, "resumed": args.resume}
    path = Path(cfg.OUTPUT_DIR) / "record.json"
    kept = keep_beside(path) if len(cfg.DATASETS.TEST) == 1 else None
    record = make_record(cfg, job.config_name, results, weights, job.data, settings, time.time() - job.started, kept)
    print(f"record: {record.write(path)}", flush=True)
    verify_results(cfg, results)  # exit code 1 where TEST.EXPECTED_RESULTS are others


def train(cfg: CfgNode, resume: bool, passes: int) -> tuple[dict, str, dict]:
    """Returns the final test's results, the initial weights, and {backbone_tensors_loaded, speed}."""
    trainer = Trainer(cfg, passes)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    facts = {"backbone_tensors_loaded": trainer.checkpointer.backbone_loaded, "speed": speed(trainer.storage)}
    return trainer._last_eval_results, cfg.MODEL.WEIGHTS, facts


def evaluate_only(cfg: CfgNode, resume: bool) -> tuple[dict, str, dict]:
    """As `train` without training: the file must hold the whole detector, not just its backbone."""
    model: nn.Module = Trainer.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    path = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else cfg.MODEL.WEIGHTS
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    with every_tensor_loads(model, names if path else [], path):
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return Trainer.test(cfg, model), path, {"backbone_tensors_loaded": checkpointer.backbone_loaded}


def speed(storage: EventStorage) -> dict[str, float]:
    """{iterations_per_second, loading_share, memory_gib} of a training; loading_share: the time waiting for data."""
    histories = storage.histories()
    if not {"time", "data_time"} <= histories.keys():
        return {}
    seconds, waiting = (histories[name].global_avg() for name in ("time", "data_time"))
    facts = {"iterations_per_second": round(1 / seconds, 4), "loading_share": round(min(waiting / seconds, 1), 4)}
    if torch.cuda.is_available():
        facts["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return facts
