"""Fine-tune and evaluate a detector from a pretrained backbone: detectron2's train_net.py with our protocols.

    python detection/train_net.py --config-file detection/configs/X.yaml --num-gpus 8 MODEL.WEIGHTS X.pkl OUTPUT_DIR out

DETECTRON2_DATASETS names the folder with VOC2007, VOC2012 and coco, as detectron2 has it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adco.errors import UserError, command


@command
def main(argv: Sequence[str] | None = None) -> int:
    started = time.time()
    import detection  # noqa: F401  (first of all: it patches, or says how to get detectron2)

    from detectron2.engine import default_argument_parser, launch  # isort: skip
    from detection.trainer import run

    parser = default_argument_parser(epilog=__doc__)
    parser.set_defaults(num_gpus=None)
    args = parser.parse_args(argv)
    args.num_gpus, cfg, job = prepare(args, started)
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


def prepare(args, started: float):
    """Everything that can be wrong before training is found here, by one process: (GPUs, config, job)."""
    import torch

    from adco.files import output_folder
    from detection.datasets import inspect_dataset
    from detection.register import setup_environment
    from detection.settings import check_weights, choose_gpus, deviations, device_of, fit_to_hardware, load_config
    from detection.trainer import Job

    setup_environment()
    cfg = load_config(args.config_file, args.opts)
    device = "cpu" if cfg.MODEL.DEVICE == "cpu" else device_of(args.opts)
    gpus = choose_gpus(args.num_gpus, device, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    for note in fit_to_hardware(cfg, gpus, args.num_machines):
        print(note, flush=True)
    if not args.resume:
        check_weights(cfg.MODEL.WEIGHTS)
    output_folder(cfg.OUTPUT_DIR)
    cfg.freeze()
    names = cfg.DATASETS.TEST if args.eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    data = tuple(inspect_dataset(name) for name in dict.fromkeys(names))
    for facts in data:
        print("{name}: {images} images, {boxes} boxes, {classes_with_boxes} classes".format(**facts), flush=True)
    return gpus, cfg, Job(Path(args.config_file).stem, deviations(args.opts), gpus, data, started)


def user_error_inside(error: Exception) -> UserError | None:
    """The UserError that `error` is, or that a spawned process died of (torch passes its traceback on as text)."""
    if isinstance(error, UserError):
        return error
    lines = [line for line in str(error).splitlines() if line.startswith("adco.errors.UserError: ")]
    return UserError(lines[-1].partition(": ")[2]) if lines else None


if __name__ == "__main__":
    sys.exit(main())
