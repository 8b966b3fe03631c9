"""Submit a pretraining to SLURM through submitit: one process for each GPU, requeued until it is done.

Before the time limit, or when the job is preempted, every rank is asked to stop, rank 0 writes a checkpoint, and the
job goes back into the queue and resumes from it. A training that fails is not requeued.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adco.config.loading import load_recipe
from adco.launch.slurm import SubmittedCommand, job_parameters, submit
from adco.utils.errors import UserError, command

EXAMPLES = """\
examples:
  # two nodes of eight GPUs, a day at a time, until the recipe is done
  python tools/submit.py --nodes 2 --gpus-per-node 8 --hours 24 --partition gpu -- \\
      --config-file adco_r50_200ep data.root=IMAGENET --output-dir output/adco
  # what would be submitted (submitit and SLURM are not needed for this)
  python tools/submit.py --dry-run --nodes 2 --gpus-per-node 8 -- --config-file ... --output-dir ...
Logs: OUTPUT_DIR/submitit/. Everything after -- is for tools/train_adco.py; --resume is added.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Submit the training, or with --dry-run print what would be submitted."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines (default: %(default)s)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="0: one CPU rank a node (default: %(default)s)")
    parser.add_argument("--cpus-per-rank", type=int, default=10, help="for data.workers (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=24, help="time limit before a requeue (default: %(default)s)")
    parser.add_argument("--name", default="adco", help="of the job (default: %(default)s)")
    parser.add_argument("--partition", help="SLURM's partition")
    parser.add_argument("--account", help="SLURM's account")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: this machine")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")
    parser.add_argument("training", nargs=argparse.REMAINDER, metavar="-- ...", help="arguments of tools/train_adco.py")
    args = parser.parse_args(argv)
    words = args.training[1:] if args.training[:1] == ["--"] else args.training
    _check(args)
    output = check_training(words, args.nodes * max(1, args.gpus_per_node))
    training = SubmittedCommand((sys.executable, str(ROOT / "tools" / "train_adco.py"), *words, "--resume"))
    logs = output / "submitit"
    parameters = job_parameters(
        args.name, args.nodes, max(1, args.gpus_per_node), args.gpus_per_node, args.cpus_per_rank, args.hours,
        args.partition, args.account,
    )  # fmt: skip
    if args.dry_run:
        print("\n".join(f"{key}: {value}" for key, value in parameters.items()))
        print(f"logs: {logs}\neach rank: {shlex.join(training.command)}")
        return 0
    number = submit(training, args.cluster, logs, parameters).job_id
    print(f"submitted job {number}; logs: {logs}")
    return 0


def check_training(words: Sequence[str], ranks: int) -> Path:
    """Check the arguments of the training before it is queued.

    Args:
        words: The arguments of tools/train_adco.py.
        ranks: How many processes will train.

    Returns:
        The output folder that they name.

    Raises:
        UserError: For a mistake in the recipe, or a batch that does not divide into the ranks' parts.
        SystemExit: When --config-file or --output-dir is missing.
    """
    parser = argparse.ArgumentParser(prog="-- (arguments of tools/train_adco.py)", add_help=False, allow_abbrev=False)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    known, rest = parser.parse_known_args(words)
    recipe = load_recipe(known.config_file, [word for word in rest if "=" in word and not word.startswith("-")])
    parts = ranks * recipe.compute.accumulate * recipe.encoder.norm_splits
    if recipe.batch % parts or recipe.batch // parts < 2:
        raise UserError(
            f"recipe: batch={recipe.batch} does not divide into {parts} parts of at least 2 images (ranks={ranks} x "
            "compute.accumulate x encoder.norm_splits); change one of them"
        )
    return known.output_dir


def _check(args: argparse.Namespace) -> None:
    for name, low in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_rank", 1), ("hours", 0.1)):
        if getattr(args, name) < low:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least {low}")
    if args.cluster == "local" and args.nodes > 1:
        raise UserError(f"--nodes {args.nodes}: this machine is one; use --cluster slurm")


if __name__ == "__main__":
    sys.exit(main())
