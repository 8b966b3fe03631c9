"""detectron2's DefaultTrainer with the protocol's evaluators and the proof that the pretrained weights arrived."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.evaluation import DatasetEvaluator, verify_results
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adco.errors import UserError
from detection import register
from detection.evaluation import build_evaluator
from detection.report import make_record
from detection.verify import every_tensor_loads
from detection.weights import backbone_tensors


@dataclass(frozen=True)
class Job:
    """What every process of a run needs besides the config.

    overrides: what was set beside the config file and may make the run differ from its protocol
    data: the datasets' facts, gathered once by the process that starts the others
    """

    config_name: str
    overrides: tuple[str, ...]
    gpus: int
    data: tuple[Mapping[str, object], ...]
    started: float


class Trainer(DefaultTrainer):
    """DefaultTrainer; every backbone tensor must come from the weights file, and the evaluation is the protocol's."""

    backbone_tensors_loaded = 0

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return build_evaluator(dataset_name, Path(output_folder or Path(cfg.OUTPUT_DIR) / "inference"))

    def resume_or_load(self, resume: bool = True) -> None:
        path = weights_path(self.checkpointer, self.cfg.MODEL.WEIGHTS, resume)
        model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        names = backbone_tensors(list(model.state_dict()))
        if path:
            with every_tensor_loads(model, names, path):
                super().resume_or_load(resume)
            self.backbone_tensors_loaded = len(names)
        else:
            super().resume_or_load(resume)
        say_loaded(self.backbone_tensors_loaded, len(names), path)


def run(cfg: CfgNode, args: argparse.Namespace, job: Job) -> None:
    """One process of the run: train (or only evaluate), print detectron2's tables, write OUTPUT_DIR/record.json."""
    register.setup_environment()  # a spawned process has not done so yet
    default_setup(cfg, args)
    try:
        results, weights, loaded = evaluate_only(cfg, args.resume) if args.eval_only else train(cfg, args.resume)
    except FloatingPointError as error:
        raise UserError(f"training diverged ({str(error).splitlines()[0]}); lower SOLVER.BASE_LR") from error
    if not comm.is_main_process():
        return
    settings = {
        "backbone_tensors_loaded": loaded,
        "overrides": list(job.overrides),
        "gpus": job.gpus,
        "eval_only": args.eval_only,
        "resumed": args.resume,
    }
    record = make_record(cfg, job.config_name, results, weights, job.data, settings, time.time() - job.started)
    print(f"record: {record.write(Path(cfg.OUTPUT_DIR) / 'record.json')}")
    if args.eval_only:
        verify_results(cfg, results)


def train(cfg: CfgNode, resume: bool) -> tuple[dict, str, int]:
    """Returns the final test's results, the initial weights, and how many backbone tensors came from them."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer._last_eval_results, cfg.MODEL.WEIGHTS, trainer.backbone_tensors_loaded


def evaluate_only(cfg: CfgNode, resume: bool) -> tuple[dict, str, int]:
    """As `train` without training: the file must hold the whole detector, not just its backbone."""
    model: nn.Module = Trainer.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    path = weights_path(checkpointer, cfg.MODEL.WEIGHTS, resume)
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    count = len(backbone_tensors(names))
    if path:
        with every_tensor_loads(model, names, path):
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    loaded = count if path else 0
    say_loaded(loaded, count, path)
    return Trainer.test(cfg, model), path, loaded


def weights_path(checkpointer: DetectionCheckpointer, weights: str, resume: bool) -> str:
    """The file that `resume_or_load` will read; "" for random initialisation."""
    return checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else weights


def say_loaded(loaded: int, count: int, path: str) -> None:
    if comm.is_main_process():
        source = f"from {path}" if path else "random initialisation (MODEL.WEIGHTS is empty)"
        print(f"backbone: {loaded} of {count} tensors loaded, {source}", flush=True)
