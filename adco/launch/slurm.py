"""Jobs of a cluster through submitit: a command that is stopped before its time is up goes back into the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adco.utils.errors import REQUEUE, UserError
from adco.utils.files import output_folder

STOP = signal.SIGUSR1  # what SLURM sends, and our commands listen to
ASK_SECONDS = 120  # before the time limit
MOST_REQUEUES = 1000  # submitit's limit of time-outs; the work's own length ends it


@dataclass(frozen=True)
class SubmittedCommand:
    """One task's part of a job, which submitit calls in every task.

    words: the command line; name: for the message of a failure
    ranks: whether the tasks are ranks of one run, which are told who they are
    """

    words: tuple[str, ...]
    name: str = "the training"
    ranks: bool = True

    def __call__(self) -> str:
        import submitit

        place = submitit.JobEnvironment()
        code = run_until_stopped(self.words, os.environ | (ranks_of(place) if self.ranks else {}))
        if code in (REQUEUE, -STOP):  # -STOP: it came before the command had begun to listen
            signal.raise_signal(STOP)  # submitit's turn: rank 0 requeues the job and leaves
            time.sleep(30)  # the requeue ends the other ranks
            sys.exit(REQUEUE)
        if code:
            raise RuntimeError(f"{self.name} ended with exit code {code}; the log says why: {place.paths.stderr}")
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
    """What adco.utils.distributed reads, from a submitit.JobEnvironment: who this rank is and where they all meet."""
    digits = "".join(filter(str.isdigit, place.job_id)) or "0"
    return {
        "RANK": str(place.global_rank),
        "WORLD_SIZE": str(place.num_tasks),
        "LOCAL_RANK": str(place.local_rank),
        "MASTER_ADDR": place.hostnames[0],
        "MASTER_PORT": str(20_000 + int(digits) % 20_000),
    }


def job_parameters(
    name: str,
    nodes: int,
    tasks_per_node: int,
    gpus_per_node: int,
    cpus_per_task: int,
    hours: float,
    partition: str | None = None,
    account: str | None = None,
) -> dict[str, object]:
    """submitit's parameters, those of SLURM alone with the prefix slurm_."""
    found = {
        "name": name,
        "nodes": nodes,
        "tasks_per_node": tasks_per_node,
        "gpus_per_node": gpus_per_node,
        "cpus_per_task": cpus_per_task,
        "timeout_min": round(60 * hours),
        "slurm_signal_delay_s": ASK_SECONDS,
        "slurm_partition": partition,
        "slurm_account": account,
        "slurm_additional_parameters": {"requeue": True},
    }
    return {key: value for key, value in found.items() if value is not None}


def submit(work: SubmittedCommand, cluster: str, logs: Path, job: dict[str, object]):
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
        return executor.submit(work)
    except (RuntimeError, ValueError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"{cluster} does not take the job: {' '.join(str(error).split())[:300]}") from error
