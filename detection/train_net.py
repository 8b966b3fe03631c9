"""Fine-tune and evaluate a detector from a pretrained backbone: detectron2's train_net.py with the project's protocols.

    python detection/train_net.py --config-file detection/configs/pascal_voc_R_50_C4_24k_adco.yaml --num-gpus 8 \\
        MODEL.WEIGHTS X.pkl OUTPUT_DIR out

MODEL.WEIGHTS: a file that tools/convert_to_d2.py wrote, zoo://NAME (converted and kept in the cache), or '' for random
initialisation. The environment variable DETECTRON2_DATASETS names the folder with VOC2007, VOC2012 and coco.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adco.utils.errors import USER_ERROR, UserError, command

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from detection.trainer import DetectionRun


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Check everything, then train or evaluate in a process for each GPU."""
    started = time.time()
    import detection  # noqa: F401  (before detectron2: applies patches, or says how to install it)

    from detectron2.engine import launch  # isort: skip
    from detection.seeds import run_trials
    from detection.trainer import run

    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(argv)
    args.num_gpus, cfg, job = prepare(args, started)
    if args.trials > 1:
        return run_trials(args.trials, argv, cfg, job, args.machine_rank == 0)
    try:
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(cfg, args, job),
        )
    except Exception as error:
        raise user_error_inside(error) or error from None
    return 0


def parser() -> argparse.ArgumentParser:
    """detectron2's arguments and this project's."""
    from detectron2.engine import default_argument_parser

    from detection.coco_eval import EVALUATORS
    from detection.config import NORMS

    parser = default_argument_parser(epilog=__doc__)
    parser.set_defaults(num_gpus=None)
    parser.allow_abbrev = False  # an abbreviated `--trial 5` would be passed on to the command of every trial
    add = parser.add_argument
    add("--batch", type=int, metavar="N", help="images per optimiser step; rate and schedule follow by the linear rule")
    add("--images-per-gpu", type=int, metavar="N", help="what a GPU holds at once; a larger batch is accumulated")
    add("--as-given", action="store_true", help="train exactly what config and overrides say, without the linear rule")
    add("--norm", choices=NORMS, help="norm layers wherever the config has some")
    add(
        "--trials",
        type=int,
        default=1,
        metavar="N",
        help="N seeds in OUTPUT_DIR/trial_K, mean and deviation in one record",
    )
    add("--evaluator", choices=EVALUATORS, help="implementation of COCOeval (default: the first that is installed)")
    return parser


def prepare(args: argparse.Namespace, started: float) -> tuple[int, CfgNode, DetectionRun]:
    """Check and complete everything before training, in one process.

    Args:
        args: The parsed command line.
        started: Time of the start, in seconds since the epoch.

    Returns:
        (GPUs of this machine, frozen config, what every process needs besides it).

    Raises:
        UserError: Any mistake in command line, config, weights or data that can be detected before training.
    """
    import torch

    from adco.utils.files import output_folder
    from detection import batch_scaling, coco_eval, config
    from detection.convert import local_weights
    from detection.datasets import inspect_dataset
    from detection.register import setup_environment
    from detection.trainer import DetectionRun

    setup_environment()
    evaluator = coco_eval.use(args.evaluator)
    cfg, recipe = config.load_config(args.config_file, args.opts), config.load_config(args.config_file, [])
    device = "cpu" if cfg.MODEL.DEVICE == "cpu" else config.device_of(args.opts)
    gpus = config.choose_gpus(args.num_gpus, device, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    config.check_machines(args.num_machines, args.machine_rank, args.dist_url)
    for note in config.fit_to_hardware(cfg, gpus, args.num_machines, args.norm):
        print(note, flush=True)
    workers = max(gpus * args.num_machines, 1)
    plan = batch_scaling.plan(cfg, recipe, workers, args.batch, args.images_per_gpu, args.as_given)
    print("\n".join(batch_scaling.describe(plan)), flush=True)
    if args.trials < 1 or (args.trials > 1 and args.eval_only):
        raise UserError(f"--trials {args.trials}: at least 1, and not with --eval-only")
    cfg.MODEL.WEIGHTS = local_weights(cfg.MODEL.WEIGHTS)
    if not args.resume:
        config.check_weights(cfg.MODEL.WEIGHTS)
    output_folder(cfg.OUTPUT_DIR)
    cfg.freeze()
    names = cfg.DATASETS.TEST if args.eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    data = tuple(inspect_dataset(name) for name in dict.fromkeys(names))
    for facts in data:
        print("{name}: {images} images, {boxes} boxes, {classes_with_boxes} classes".format(**facts), flush=True)
    overrides = config.deviations(args.opts)
    return gpus, cfg, DetectionRun(Path(args.config_file).stem, overrides, gpus, plan, data, evaluator, started)


def user_error_inside(error: Exception) -> UserError | None:
    """The UserError that `error` is, or that ended a spawned process (torch passes its traceback on as text)."""
    if isinstance(error, UserError):
        return error
    lines = [line for line in str(error).splitlines() if line.startswith(USER_ERROR)]
    return UserError(lines[-1].partition(": ")[2]) if lines else None


if __name__ == "__main__":
    sys.exit(main())
