"""Submit a pretraining to SLURM through submitit: one process a GPU, put back into the queue until it is done.

Before the time limit, or when the job is preempted, every rank is asked to stop, rank 0 writes a checkpoint, and the
job goes back into the queue, where it goes on from there. A training that fails is not requeued.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adco.errors import REQUEUE, UserError, command
from adco.files import output_folder
from adco.recipe_files import load_recipe

STOP = signal.SIGUSR1  # what SLURM sends, and the training listens to
ASK_SECONDS = 120  # before the time limit
MOST_REQUEUES = 1000  # submitit's limit of time-outs; the recipe's epochs end the run
EXAMPLES = """\
examples:
  # two nodes of eight GPUs, a day at a time, until the recipe is done
  python tools/submit.py --nodes 2 --gpus-per-node 8 --hours 24 --partition gpu -- \\
      --config-file adco_r50_200ep data.root=IMAGENET --output-dir output/adco
  # what would be submitted (submitit and SLURM are not needed for this)
  python tools/submit.py --dry-run --nodes 2 --gpus-per-node 8 -- --config-file ... --output-dir ...
Logs: OUTPUT_DIR/submitit/. Everything after -- is for tools/train_adco.py; --resume is added.
"""


@dataclass(frozen=True)
class Training:
    """One rank's part of the job, which submitit calls on every rank. words: the command line of the training."""

    words: tuple[str, ...]

    def __call__(self) -> str:
        import submitit

        place = submitit.JobEnvironment()
        code = run_until_stopped(self.words, os.environ | ranks_of(place))
        if code in (REQUEUE, -STOP):  # -STOP: it came before the training had begun to listen
            signal.raise_signal(STOP)  # submitit's turn: rank 0 requeues the job and leaves
            time.sleep(30)  # the requeue ends the other ranks
            sys.exit(REQUEUE)
        if code:
            raise RuntimeError(f"the training ended with exit code {code}; the log says why: {place.paths.stderr}")
        return "done"

    def checkpoint(self):
        """What submitit runs after the requeue: the same, which resumes."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def run_until_stopped(words: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command to its end and return its exit code; STOP is passed on to it."""
    child = subprocess.Popen(words, env=environment)
    before = signal.signal(STOP, lambda number, frame: child.send_signal(number))
    try:
        return child.wait()
    finally:
        signal.signal(STOP, before)


def ranks_of(place) -> dict[str, str]:
    """What adco/distributed.py reads, from a submitit.JobEnvironment: who this rank is and where they all meet."""
    digits = "".join(filter(str.isdigit, place.job_id)) or "0"
    return {
        "RANK": str(place.global_rank),
        "WORLD_SIZE": str(place.num_tasks),
        "LOCAL_RANK": str(place.local_rank),
        "MASTER_ADDR": place.hostnames[0],
        "MASTER_PORT": str(20_000 + int(digits) % 20_000),
    }


@command
def main(argv: Sequence[str] | None = None) -> int:
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
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: on this machine")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")
    parser.add_argument("training", nargs=argparse.REMAINDER, metavar="-- ...", help="arguments of tools/train_adco.py")
    args = parser.parse_args(argv)
    words = args.training[1:] if args.training[:1] == ["--"] else args.training
    _check(args)
    output = check_training(words, args.nodes * max(1, args.gpus_per_node))
    training = Training((sys.executable, str(ROOT / "tools" / "train_adco.py"), *words, "--resume"))
    logs, job = output / "submitit", job_parameters(args)
    if args.dry_run:
        print("\n".join(f"{key}: {value}" for key, value in job.items()))
        print(f"logs: {logs}\neach rank: {shlex.join(training.words)}")
        return 0
    number = submit(training, args.cluster, logs, job).job_id
    print(f"submitted job {number}; logs: {logs}")
    return 0


def check_training(words: Sequence[str], ranks: int) -> Path:
    """The output folder that the training's arguments name. Raises UserError now, not after hours in the queue."""
    parser = argparse.ArgumentParser(prog="-- (arguments of tools/train_adco.py)", add_help=False, allow_abbrev=False)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    found, rest = parser.parse_known_args(words)
    recipe = load_recipe(found.config_file, [word for word in rest if "=" in word and not word.startswith("-")])
    parts = ranks * recipe.compute.accumulate * recipe.encoder.norm_splits
    if recipe.batch % parts or recipe.batch // parts < 2:
        raise UserError(
            f"recipe: batch={recipe.batch} does not divide into {parts} parts of at least 2 images (ranks={ranks} x "
            "compute.accumulate x encoder.norm_splits); change one of them"
        )
    return found.output_dir


def job_parameters(args: argparse.Namespace) -> dict[str, object]:
    """submitit's parameters, those of SLURM alone with the prefix slurm_."""
    found = {
        "name": args.name,
        "nodes": args.nodes,
        "tasks_per_node": max(1, args.gpus_per_node),
        "gpus_per_node": args.gpus_per_node,
        "cpus_per_task": args.cpus_per_rank,
        "timeout_min": round(60 * args.hours),
        "slurm_signal_delay_s": ASK_SECONDS,
        "slurm_partition": args.partition,
        "slurm_account": args.account,
        "slurm_additional_parameters": {"requeue": True},
    }
    return {key: value for key, value in found.items() if value is not None}


def submit(training: Training, cluster: str, logs: Path, job: dict[str, object]):
    """Hand the job to submitit; returns its Job. Raises UserError."""
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = STOP.name.removeprefix("SIG")  # read when submitit is imported
    try:
        import submitit
    except ImportError:
        raise UserError("submitit is not installed; pip install submitit, or use docs/slurm/train.sbatch") from None
    try:
        limit = {f"{cluster}_max_num_timeout": MOST_REQUEUES}
        executor = submitit.AutoExecutor(folder=output_folder(logs), cluster=cluster, **limit)
        executor.update_parameters(**job)
        return executor.submit(training)
    except (RuntimeError, ValueError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"{cluster} does not take the job: {' '.join(str(error).split())[:300]}") from error


def _check(args: argparse.Namespace) -> None:
    for name, low in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_rank", 1), ("hours", 0.1)):
        if getattr(args, name) < low:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least {low}")
    if args.cluster == "local" and args.nodes > 1:
        raise UserError(f"--nodes {args.nodes}: this machine is one; use --cluster slurm")


if __name__ == "__main__":
    sys.exit(main())
