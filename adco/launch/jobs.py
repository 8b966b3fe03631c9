"""Run commands as processes: each has a log, can be resumed, and cannot outlive this one."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from adco.launch import supervisor
from adco.launch.live_table import LiveTable
from adco.utils.errors import REQUEUE, Requeue
from adco.utils.files import lock_output_dir, output_folder, write_text
from adco.utils.signals import StopRequests

GRACE_SECONDS = 90  # between SIGTERM and SIGKILL: time to write a checkpoint
PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Job:
    """A command that runs in a process of its own and resumes its work when it is run again.

    Attributes:
        name: Unique among the jobs of a run; also the stem of the log's file name.
        command: The command line; no shell reads it.
        after: Names of jobs that must have ended well before this one starts.
        minutes: The expected duration; None when it is not known.
        outputs: Files that the command writes atomically. When all exist the job is not run; when one is missing after
            a run the job has failed.
        reused: Returns a reason when an equal result exists, else None; called when it is the job's turn.
        environment: Variables added to those of this process.
        devices: How many of `run_jobs`' devices it needs (0: none of them).
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    minutes: float | None = None
    outputs: tuple[Path, ...] = ()
    reused: Callable[[], str | None] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: int = 1


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: `ended`, `reused`, `failed`, `skipped` (a job before it failed) or `left` (for the next run).
        why: What was reused, the last line of the failed log, or the job that it waited for.
        seconds: The duration of this run.
    """

    status: str
    why: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the job's result exists."""
        return self.status in ("ended", "reused")


@dataclass
class Running:
    """A started job. process: its supervisor, which leads the job's process group."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    devices: tuple[str, ...]
    start: float


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    *,
    at_once: int = 1,
    devices: Sequence[str] = (),
    budget_minutes: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Outcome]:
    """Run the jobs in their order. The same call resumes what an interrupted one has left.

    Args:
        jobs: The jobs; each comes after those that it names in `after`.
        folder: Gets NAME.log (appended to) and jobs.json (the state of every job). One run at a time can use it.
        at_once: How many jobs run at the same time.
        devices: CUDA_VISIBLE_DEVICES of each GPU; a job has those that it is given for itself. Empty: the variable is
            not changed.
        budget_minutes: A job that is expected to end later is not started, and one that still runs then gets SIGTERM;
            the outcome of both is `left`.
        stop: Called a few times a second; True ends the run as the budget does.

    Returns:
        The outcome of every job by its name.

    Raises:
        KeyboardInterrupt: After Ctrl-C. The running jobs get SIGTERM, and SIGKILL after 90 s or a second Ctrl-C.
        Requeue: After SIGTERM or SIGUSR1, which stop the jobs in the same way.
        UserError: When the folder cannot be written or another run uses it.
        ValueError: For names that are not unique, or a job after one that does not exist.
    """
    _check(jobs, devices)
    folder, expected = output_folder(folder), {job.name: job.minutes for job in jobs}
    with lock_output_dir(folder) or contextlib.nullcontext(), StopRequests() as asked, LiveTable(expected) as display:
        run = _Run(jobs, folder, at_once, list(devices), budget_minutes, display)
        try:
            while run.unfinished():
                if asked.number or stop() or run.over_budget():
                    run.interrupt("asked to stop" if asked.number else "out of time")
                    break
                run.step()
                time.sleep(PAUSE_SECONDS)
        finally:
            run.kill()
    if asked.number == signal.SIGINT:
        raise KeyboardInterrupt
    if asked.number:
        raise Requeue(f"{signal.Signals(asked.number).name} came; the same command resumes from here")
    return {job.name: run.outcomes[job.name] for job in jobs}


class _Run:
    """The jobs' states while they run."""

    def __init__(
        self,
        jobs: Sequence[Job],
        folder: Path,
        at_once: int,
        devices: list[str],
        budget: float | None,
        display: LiveTable,
    ):
        self.jobs, self.folder, self.at_once, self.display = jobs, folder, at_once, display
        self.all_devices, self.free, self.budget = tuple(devices), devices, budget
        self.start = time.monotonic()
        self.running: dict[str, Running] = {}
        self.outcomes: dict[str, Outcome] = {}

    def unfinished(self) -> bool:
        return len(self.outcomes) < len(self.jobs)

    def over_budget(self) -> bool:
        return self.budget is not None and time.monotonic() - self.start > 60 * self.budget

    def step(self) -> None:
        """Record the jobs that have ended, settle those that need not run, start those that can."""
        for running in list(self.running.values()):
            if (code := _exit_code(running)) is not None:
                self._end(running, code)
        for job in self.jobs:
            if job.name not in self.outcomes and job.name not in self.running:
                self._consider(job)
        self.display.tick({name: last_line(running.log) for name, running in self.running.items()})

    def _consider(self, job: Job) -> None:
        missing = [name for name in job.after if not (name in self.outcomes and self.outcomes[name].good)]
        failed = next((name for name in missing if name in self.outcomes), None)
        if failed:
            status = self.outcomes[failed].status
            self._settle(job, Outcome("left" if status == "left" else "skipped", f"{failed} {status}"))
        elif not missing and (reason := _nothing_to_do(job)):
            self._settle(job, Outcome("reused", reason))
        elif not missing and self._has_room(job):
            end_minutes = (time.monotonic() - self.start) / 60 + (job.minutes or 0)
            if self.budget is not None and end_minutes > self.budget:
                self._settle(job, Outcome("left", f"expected to end after the {self.budget:g} minutes there are"))
            else:
                self._start(job)

    def _has_room(self, job: Job) -> bool:
        needed = min(job.devices, len(self.all_devices))
        return len(self.running) < self.at_once and needed <= len(self.free)

    def _start(self, job: Job) -> None:
        needed = min(job.devices, len(self.all_devices))
        own, self.free = tuple(self.free[:needed]), self.free[needed:]
        log = self.folder / f"{job.name}.log"
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **job.environment}
        if self.all_devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        with log.open("ab") as file:
            file.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S}  {shlex.join(job.command)}\n".encode())
            file.flush()
            process = supervisor.start(job.command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        self.running[job.name] = Running(job, process, log, own, time.monotonic())
        self._write()
        self.display.started(job.name, log)

    def _end(self, running: Running, code: int) -> None:
        if running.process.stdin:
            running.process.stdin.close()
        self.free += running.devices
        del self.running[running.job.name]
        missing = [path for path in running.job.outputs if not path.exists()]
        if code == REQUEUE:
            status, why = "left", last_line(running.log)
        elif code:
            status, why = "failed", f"exit code {code}: {last_line(running.log)}"
        elif missing:
            status, why = "failed", f"ended without writing {missing[0]}"
        else:
            status, why = "ended", ""
        self._settle(running.job, Outcome(status, why, round(time.monotonic() - running.start, 1)))

    def _settle(self, job: Job, outcome: Outcome) -> None:
        self.outcomes[job.name] = outcome
        self._write()
        self.display.finished(job.name, **asdict(outcome))

    def interrupt(self, why: str) -> None:
        """Send SIGTERM to the running jobs and wait while they write a checkpoint; what is unfinished is `left`."""
        for running in self.running.values():
            _signal(running, signal.SIGTERM)
        self.display.note(f"{why}: waiting for {len(self.running)} stages to save their work")
        deadline = time.monotonic() + GRACE_SECONDS
        while self.running and time.monotonic() < deadline:
            for running in list(self.running.values()):
                if (code := _exit_code(running)) is not None:
                    self._end(running, code if code == 0 else REQUEUE)
            time.sleep(PAUSE_SECONDS)
        self.kill()
        waiting = [job for job in self.jobs if job.name not in self.outcomes]
        self.outcomes |= {job.name: Outcome("left", why) for job in waiting}
        self._write()
        self.display.note(f"{why}: {len(waiting)} stages were not started; the same command resumes")

    def kill(self) -> None:
        """Kill the running jobs with all of their processes."""
        for running in list(self.running.values()):
            _signal(running, signal.SIGKILL)
            running.process.wait()
            self._end(running, REQUEUE)

    def _write(self) -> None:
        now = {name: {"status": "running", "log": running.log.name} for name, running in self.running.items()}
        done = {name: asdict(outcome) for name, outcome in self.outcomes.items()}
        states = {job.name: (done | now).get(job.name, {"status": "waiting"}) for job in self.jobs}
        for job in self.jobs:
            states[job.name]["command"] = shlex.join(job.command)
        write_text(self.folder / "jobs.json", json.dumps(states, indent=2) + "\n")


def last_line(log: Path) -> str:
    """The last line of a log that is not empty; the last state of a progress bar counts as a line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines and not lines[-1].startswith("--- ") else ""


def _nothing_to_do(job: Job) -> str | None:
    if job.outputs and all(path.exists() for path in job.outputs):
        return job.reused() or f"{job.outputs[0]} exists"
    return job.reused()


def _exit_code(running: Running) -> int | None:
    """The exit code of a job that has ended, None while it runs. What the job left running is killed."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT  # not reaped yet: no other group can have its number
    if os.waitid(os.P_PID, running.process.pid, options) is None:
        return None
    _signal(running, signal.SIGKILL)  # the rest of its process group
    return running.process.wait()


def _signal(running: Running, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.process.pid, number)


def _check(jobs: Sequence[Job], devices: Sequence[str]) -> None:
    seen: set[str] = set()
    for job in jobs:
        if job.name in seen or Path(job.name).name != job.name or job.name in ("", ".", "..", "jobs"):
            raise ValueError(f"job name {job.name!r}: expected one of its own that can be a file's name")
        if unknown := [name for name in job.after if name not in seen]:
            raise ValueError(f"job {job.name}: comes after {unknown[0]!r}, which is not a job before it")
        seen.add(job.name)
