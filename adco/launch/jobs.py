"""Stages as processes: each with a log, resumable, unable to stop another or to outlive the command that started it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
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
    """One stage: a command in a process of its own that resumes by itself when it is run again.

    name: unique, fit for a file's name
    words: the command line; there is no shell
    after: names of jobs that must have ended well before it starts
    minutes: expected; None when not known
    outputs: files, written atomically: when all exist there is nothing to do, and a run that leaves one out has failed
    reused: a reason in words when an equal result exists; asked when the job's turn comes
    environment: added to this process's
    devices: how many of `run_jobs`' devices it takes (0: it runs beside them)
    """

    name: str
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    minutes: float | None = None
    outputs: tuple[Path, ...] = ()
    reused: Callable[[], str | None] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: int = 1


@dataclass(frozen=True)
class Outcome:
    """How a job came out: `ended`, `reused`, `failed`, `skipped` (one before it failed) or `left` (for the next run).

    why: what was reused, the failed log's last line, or what was waited for; seconds: of this run
    """

    status: str
    why: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.status in ("ended", "reused")


@dataclass
class Running:
    """A started job. process: the leash, which leads the job's process group."""

    job: Job
    process: subprocess.Popen
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
    """Run the jobs in their order, `at_once` side by side; every job's outcome by name.

    folder: gets NAME.log (appended to) and jobs.json (what is known so far); one run at a time may use it.
    devices: CUDA_VISIBLE_DEVICES of each GPU; a job has as many as it takes for itself. Empty: it stays as it is.
    budget_minutes: no job starts that is expected to end later; what still runs then gets SIGTERM. All this is `left`.
    stop: asked a few times a second; True ends the run as the budget does.
    Ctrl-C, SIGTERM and SIGUSR1 stop the running jobs (SIGTERM; SIGKILL after 90 s or a second Ctrl-C) and raise
    KeyboardInterrupt or Requeue. The same call again does what is left. Raises UserError.
    """
    _check(jobs, devices)
    folder = output_folder(folder)
    with lock_output_dir(folder) or contextlib.nullcontext(), StopRequests() as asked, LiveTable(jobs) as shown:
        run = _Run(jobs, folder, at_once, list(devices), budget_minutes, shown)
        try:
            while run.unfinished():
                if asked.number or stop() or run.over_budget():
                    run.put_down("asked to stop" if asked.number else "out of time")
                    break
                run.step()
                time.sleep(PAUSE_SECONDS)
        finally:
            run.kill()
    if asked.number == signal.SIGINT:
        raise KeyboardInterrupt
    if asked.number:
        raise Requeue(f"{signal.Signals(asked.number).name} came; the same command goes on from here")
    return {job.name: run.outcomes[job.name] for job in jobs}


class _Run:
    """The jobs' states while they run."""

    def __init__(self, jobs, folder: Path, at_once: int, devices: list[str], budget: float | None, shown: LiveTable):
        self.jobs, self.folder, self.at_once, self.shown = jobs, folder, at_once, shown
        self.all_devices, self.free, self.budget = tuple(devices), devices, budget
        self.start = time.monotonic()
        self.running: dict[str, Running] = {}
        self.outcomes: dict[str, Outcome] = {}

    def unfinished(self) -> bool:
        return len(self.outcomes) < len(self.jobs)

    def over_budget(self) -> bool:
        return self.budget is not None and time.monotonic() - self.start > 60 * self.budget

    def step(self) -> None:
        """Take in what has ended, settle what need not run, start what can."""
        for running in list(self.running.values()):
            if (code := _exit_code(running)) is not None:
                self._end(running, code)
        for job in self.jobs:
            if job.name not in self.outcomes and job.name not in self.running:
                self._consider(job)
        self.shown.tick({name: last_line(running.log) for name, running in self.running.items()})

    def _consider(self, job: Job) -> None:
        missing = [name for name in job.after if not (name in self.outcomes and self.outcomes[name].good)]
        lost = [name for name in missing if name in self.outcomes]
        if lost:
            status = "left" if self.outcomes[lost[0]].status == "left" else "skipped"
            self._settle(job, Outcome(status, f"{lost[0]} {self.outcomes[lost[0]].status}"))
        elif not missing and (reason := _nothing_to_do(job)):
            self._settle(job, Outcome("reused", reason))
        elif not missing and self._has_room(job):
            late = (time.monotonic() - self.start) / 60 + (job.minutes or 0)
            if self.budget is not None and late > self.budget:
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
            file.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S}  {shlex.join(job.words)}\n".encode())
            file.flush()
            process = subprocess.Popen(
                [sys.executable, "-I", supervisor.__file__, *job.words],
                stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip
        self.running[job.name] = Running(job, process, log, own, time.monotonic())
        self._write()
        self.shown.started(job.name, log)

    def _end(self, running: Running, code: int) -> None:
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
        self.shown.finished(job.name, outcome)

    def put_down(self, why: str) -> None:
        """SIGTERM for what runs, time to write its checkpoint, and everything unfinished is `left`."""
        for running in self.running.values():
            _signal(running, signal.SIGTERM)
        self.shown.note(f"{why}: waiting for {len(self.running)} stages to put their work down")
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
        self.shown.note(f"{why}: {len(waiting)} stages were not begun; the same command goes on")

    def kill(self) -> None:
        """End what runs at once; nothing is left behind."""
        for running in list(self.running.values()):
            _signal(running, signal.SIGKILL)
            running.process.wait()
            self._end(running, REQUEUE)

    def _write(self) -> None:
        now = {name: {"status": "running", "log": running.log.name} for name, running in self.running.items()}
        done = {name: asdict(outcome) for name, outcome in self.outcomes.items()}
        states = {job.name: (done | now).get(job.name, {"status": "waiting"}) for job in self.jobs}
        for job in self.jobs:
            states[job.name]["command"] = shlex.join(job.words)
        write_text(self.folder / "jobs.json", json.dumps(states, indent=2) + "\n")


def last_line(log: Path) -> str:
    """The last line of a log that says something; a progress bar's last state counts as one."""
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
    """The exit code of a job that has ended, whose group is then empty; None while it runs."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT  # not reaped yet: its group's number cannot be another's
    if os.waitid(os.P_PID, running.process.pid, options) is None:
        return None
    _signal(running, signal.SIGKILL)  # what it has left behind
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
