"""Submit commands to a cluster through submitit; a command that the scheduler stops goes back into the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adco.utils.errors import REQUEUE, UserError
from adco.utils.files import output_folder

if TYPE_CHECKING:
    from submitit import Job as SubmittedJob
    from submitit import JobEnvironment

STOP = signal.SIGUSR1  # SLURM sends it, and our commands stop at it with a checkpoint
ASK_SECONDS = 120  # SLURM sends it so long before the time limit
MOST_REQUEUES = 1000  # submitit's limit of time-outs; far more than any training needs


@dataclass(frozen=True)
class SubmittedCommand:
    """A command that submitit runs in every task of a job.

    Attributes:
        command: The command line.
        name: What it is, for the message of a failure.
        ranks: Whether the tasks are ranks of one run, which need RANK, WORLD_SIZE and the like.
    """

    command: tuple[str, ...]
    name: str = "the training"
    ranks: bool = True

    def __call__(self) -> str:
        """Run the command; called by submitit. Raises RuntimeError when it fails."""
        import submitit

        task = submitit.JobEnvironment()
        code = run_until_stopped(self.command, os.environ | (ranks_of(task) if self.ranks else {}))
        if code in (REQUEUE, -STOP):  # -STOP: the signal came before the command had installed its handler
            signal.raise_signal(STOP)  # submitit's turn: rank 0 requeues the job and leaves
            time.sleep(30)  # the requeue ends the other ranks
            sys.exit(REQUEUE)
        if code:
            raise RuntimeError(f"{self.name} ended with exit code {code}; the log says why: {task.paths.stderr}")
        return "done"

    def checkpoint(self):
        """Returns what submitit runs after the requeue: the same command, which resumes."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def run_until_stopped(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end and return its exit code; STOP is forwarded to it."""
    child = subprocess.Popen(command, env=environment)
    before = signal.signal(STOP, lambda number, frame: child.send_signal(number))
    try:
        return child.wait()
    finally:
        signal.signal(STOP, before)


def ranks_of(task: JobEnvironment) -> dict[str, str]:
    """The variables that adco.utils.distributed reads: this task's rank, and the address of rank 0."""
    digits = "".join(filter(str.isdigit, task.job_id)) or "0"
    return {
        "RANK": str(task.global_rank),
        "WORLD_SIZE": str(task.num_tasks),
        "LOCAL_RANK": str(task.local_rank),
        "MASTER_ADDR": task.hostnames[0],
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
    """The parameters of a job for `submit`, in submitit's words; those of SLURM alone have the prefix slurm_.

    Args:
        name: The job's name.
        nodes: How many machines.
        tasks_per_node: Processes on each machine.
        gpus_per_node: GPUs of each machine.
        cpus_per_task: CPU cores of each process.
        hours: The time limit before a requeue.
        partition: SLURM's partition; None for its default.
        account: SLURM's account; None for its default.
    """
    parameters = {
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
    return {key: value for key, value in parameters.items() if value is not None}


def submit(command: SubmittedCommand, cluster: str, logs: Path, parameters: dict[str, object]) -> SubmittedJob[str]:
    """Submit a command to a cluster.

    Args:
        command: The command.
        cluster: `slurm`, or `local` for this machine.
        logs: The folder of submitit's logs.
        parameters: Those of `job_parameters`.

    Returns:
        submitit's job.

    Raises:
        UserError: When submitit is not installed, or the cluster refuses the job.
    """
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = STOP.name.removeprefix("SIG")  # read when submitit is imported
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError:
        raise UserError("submitit is not installed; pip install submitit, or use docs/slurm/train.sbatch") from None
    try:
        limit = {f"{cluster}_max_num_timeout": MOST_REQUEUES}
        executor = submitit.AutoExecutor(folder=output_folder(logs), cluster=cluster, **limit)
        executor.update_parameters(**parameters)
        return executor.submit(command)
    except (RuntimeError, ValueError, FailedJobError) as error:
        raise UserError(f"{cluster} does not take the job: {' '.join(str(error).split())[:300]}") from error
