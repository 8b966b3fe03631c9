"""Jobs as processes: order, failures, devices, interruption; nothing is done twice or outlives its starter."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from adco.launch.jobs import Job, last_line, run_jobs
from adco.launch.live_table import LiveTable, duration
from adco.utils.errors import UserError
from tests import ROOT
from tests.waiting import wait_until


def python(name: str, code: str, *arguments: object, **facts) -> Job:
    return Job(name, (sys.executable, "-c", code, *map(str, arguments)), **facts)


def appending(name: str, path: Path, **facts) -> Job:
    """A job that notes its name, so that a test can count how often and in which order jobs ran."""
    return python(name, "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n')", path, name, **facts)


def statuses(outcomes) -> dict[str, str]:
    return {name: outcome.status for name, outcome in outcomes.items()}


def test_jobs_run_in_order_and_a_failure_stops_only_what_comes_after_it(tmp_path, capsys):
    ran = tmp_path / "ran"
    jobs = [
        appending("a", ran),
        python("b", "import sys; print('first'); print('the reason', file=sys.stderr); sys.exit(3)"),
        appending("c", ran, after=("b",)),
        appending("d", ran, after=("c",)),
        appending("e", ran, after=("a",)),
    ]
    outcomes = run_jobs(jobs, tmp_path / "jobs")
    assert statuses(outcomes) == {"a": "ended", "b": "failed", "c": "skipped", "d": "skipped", "e": "ended"}
    assert outcomes["b"].why == "exit code 3: the reason"
    assert ran.read_text().split() == ["a", "e"]
    written = json.loads((tmp_path / "jobs" / "jobs.json").read_text())
    assert {name: state["status"] for name, state in written.items()} == statuses(outcomes)
    assert "b: failed" in capsys.readouterr().out


def test_a_second_run_does_only_what_is_left(tmp_path):
    ran, made = tmp_path / "ran", tmp_path / "made"
    jobs = [
        python("writes", "import sys; open(sys.argv[1], 'w').write('x')", made, outputs=(made,)),
        appending("known", ran, reused=lambda: "an equal result"),
        appending("again", ran),
    ]
    assert statuses(run_jobs(jobs, tmp_path / "jobs")) == {"writes": "ended", "known": "reused", "again": "ended"}
    outcomes = run_jobs(jobs, tmp_path / "jobs")
    assert statuses(outcomes) == {"writes": "reused", "known": "reused", "again": "ended"}
    assert outcomes["known"].why == "an equal result"
    assert ran.read_text().split() == ["again", "again"]


def test_a_job_that_does_not_write_its_output_has_failed(tmp_path):
    outcome = run_jobs([python("a", "pass", outputs=(tmp_path / "absent",))], tmp_path / "jobs")["a"]
    assert outcome.status == "failed"
    assert "ended without writing" in outcome.why


def test_a_command_that_cannot_start_fails_alone(tmp_path):
    outcomes = run_jobs([Job("a", ("/no/such/program",)), python("b", "pass")], tmp_path)
    assert statuses(outcomes) == {"a": "failed", "b": "ended"}
    assert "cannot be started" in outcomes["a"].why


def test_a_job_that_asks_to_be_requeued_is_left_and_so_is_what_waits_for_it(tmp_path):
    jobs = [python("a", "raise SystemExit(75)"), python("b", "pass", after=("a",))]
    assert statuses(run_jobs(jobs, tmp_path)) == {"a": "left", "b": "left"}


def test_every_device_has_one_job_at_a_time(tmp_path):
    """Six jobs of one device and one of two, on two devices: intervals on the same device never overlap."""
    code = (
        "import os, sys, time; start = time.time(); time.sleep(0.25)\n"
        "open(sys.argv[1], 'w').write(f\"{os.environ['CUDA_VISIBLE_DEVICES']} {start} {time.time()}\")"
    )
    jobs = [python(f"j{i}", code, tmp_path / f"j{i}", devices=2 if i == 3 else 1) for i in range(7)]
    run_jobs(jobs, tmp_path / "jobs", at_once=4, devices=["4", "7"])
    used = {"4": [], "7": []}
    for i in range(7):
        names, start, ended = (tmp_path / f"j{i}").read_text().split()
        assert set(names.split(",")) == {"4", "7"} if i == 3 else names in used
        for name in names.split(","):
            used[name].append((float(start), float(ended)))
    for spans in used.values():
        assert len(spans) >= 2
        spans.sort()
        assert all(first[1] <= second[0] for first, second in zip(spans, spans[1:], strict=False))


def test_at_once_is_kept_and_used(tmp_path):
    # Each job counts those that run, after a second one has started.
    code = (
        "import os, sys, time; from pathlib import Path; now, ever = map(Path, sys.argv[1:])\n"
        "mine = now / str(os.getpid()); mine.touch(); (ever / mine.name).touch()\n"
        "deadline = time.time() + 240\n"
        "while len(list(ever.iterdir())) < 2 and time.time() < deadline: time.sleep(0.02)\n"
        "time.sleep(0.4); n = len(list(now.iterdir())); mine.unlink(); print(n)"
    )
    folders = [tmp_path / "now", tmp_path / "ever"]
    for folder in folders:
        folder.mkdir()
    jobs = [python(f"j{i}", code, *folders) for i in range(5)]
    run_jobs(jobs, tmp_path / "jobs", at_once=3)
    seen = [int(last_line(tmp_path / "jobs" / f"j{i}.log")) for i in range(5)]
    assert max(seen) <= 3
    assert max(seen) >= 2


def test_the_budget_starts_nothing_that_would_end_too_late_and_stops_what_runs_over(tmp_path):
    polite = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\ntime.sleep(600)"
    jobs = [python("long", "pass", minutes=50), python("runs", polite), python("short", "pass", minutes=0)]
    start = time.monotonic()
    run_jobs([python("first", "pass")], tmp_path)
    budget = max(1.5, 10 * (time.monotonic() - start))  # seconds: enough for a short job on this machine
    start = time.monotonic()
    outcomes = run_jobs(jobs, tmp_path, at_once=2, budget_minutes=budget / 60)
    assert statuses(outcomes) == {"long": "left", "runs": "left", "short": "ended"}
    assert time.monotonic() - start < budget + 80  # before GRACE_SECONDS: no job was killed


def test_asked_to_stop_by_the_caller(tmp_path):
    start = time.monotonic()
    jobs = [python("a", "import time; time.sleep(60)"), python("b", "pass")]
    outcomes = run_jobs(jobs, tmp_path, stop=lambda: time.monotonic() - start > 0.5)
    assert statuses(outcomes) == {"a": "left", "b": "left"}


def test_one_run_at_a_time_in_a_folder(tmp_path):
    inner = f"from pathlib import Path; from adco.launch.jobs import run_jobs; run_jobs([], Path({str(tmp_path)!r}))"
    outcome = run_jobs([python("a", inner, environment={"PYTHONPATH": str(ROOT)})], tmp_path)["a"]
    assert outcome.status == "failed"
    assert "writes here; stop it, or choose another folder" in outcome.why


@pytest.mark.parametrize("names", [["a", "a"], ["a/b"], [""], ["jobs"]])
def test_names_that_cannot_be_are_refused(names, tmp_path):
    with pytest.raises(ValueError, match="job name"):
        run_jobs([python(name, "pass") for name in names], tmp_path)


def test_a_job_after_one_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="comes after 'b'"):
        run_jobs([python("a", "pass", after=("b",))], tmp_path)


def test_a_folder_that_cannot_be_written_is_a_users_mistake(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        run_jobs([], tmp_path / "file" / "jobs")


def test_the_last_line_of_a_log_is_a_progress_bars_last_state(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"--- now python x\nloading\n 10%|# |\r 20%|## |\r\n")
    assert last_line(log) == "20%|## |"
    log.write_bytes(b"--- now python x\n")
    assert last_line(log) == ""
    assert last_line(tmp_path / "absent") == ""


# What a user interrupts: a run in a process of its own, whose job has a child that has a child.
RUN = """
import sys
from pathlib import Path
from adco.utils.errors import command
from adco.launch.jobs import Job, run_jobs
folder = Path(sys.argv[1])
jobs = [Job(f"j{i}", (sys.executable, str(folder / "stage.py"), str(folder), str(i))) for i in range(2)]
@command
def main(argv=None):
    print({name: outcome.status for name, outcome in run_jobs(jobs, folder / "jobs", at_once=2).items()})
if __name__ == "__main__":
    sys.exit(main())
"""
STAGE = """
import os, signal, subprocess, sys, time
from pathlib import Path
folder, name = Path(sys.argv[1]), sys.argv[2]
def stop(*_):
    (folder / f"stopped-{name}").touch()
    if not (folder / "stubborn").exists():
        sys.exit(75)
signal.signal(signal.SIGTERM, stop)
if (folder / f"stopped-{name}").exists():
    sys.exit(0)  # resumes, and ends
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(900)"
worker = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
worker.stdout.readline()
(folder / "tmp").mkdir(exist_ok=True)
(folder / "tmp" / name).write_text(f"{os.getpid()} {worker.pid}")
(folder / "tmp" / name).rename(folder / f"pids-{name}")
time.sleep(900)
"""


@pytest.fixture
def started(tmp_path):
    """A run whose two jobs are at work, and the process ids of these and of their workers."""
    (tmp_path / "stage.py").write_text(STAGE)
    words = [sys.executable, "-c", RUN, str(tmp_path)]
    run = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ready = [tmp_path / f"pids-{i}" for i in range(2)]
    wait_until(lambda: all(path.exists() for path in ready), "both jobs at work", lambda: run.poll() is None)
    assert run.poll() is None
    pids = [int(pid) for i in range(2) for pid in (tmp_path / f"pids-{i}").read_text().split()]
    assert len(pids) == 4 and all(map(alive, pids))
    yield run, pids, words
    run.kill()
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(map(alive, pids)), "the end of all processes")


def test_when_the_run_is_killed_its_jobs_and_their_workers_are_gone(started):
    run, pids, _ = started
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_until_gone(pids)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_an_interrupted_run_stops_its_jobs_and_the_same_command_resumes(number, code, started, tmp_path):
    run, pids, words = started
    run.send_signal(number)
    assert run.wait(240) == code
    wait_until_gone(pids)
    assert all((tmp_path / f"stopped-{i}").exists() for i in range(2))
    states = json.loads((tmp_path / "jobs" / "jobs.json").read_text())
    assert {state["status"] for state in states.values()} == {"left"}
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert again.stdout.splitlines()[-1] == "{'j0': 'ended', 'j1': 'ended'}"


def test_a_second_ctrl_c_ends_jobs_that_do_not_listen(started, tmp_path):
    run, pids, _ = started
    (tmp_path / "stubborn").touch()
    run.send_signal(signal.SIGINT)
    wait_until(lambda: all((tmp_path / f"stopped-{i}").exists() for i in range(2)), "both jobs hear the first Ctrl-C")
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    assert run.wait(240) == 130
    wait_until_gone(pids)


def test_what_a_job_leaves_behind_is_ended_with_it(tmp_path):
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(900)']).pid)"
    run_jobs([python("a", code)], tmp_path)
    wait_until_gone([int(last_line(tmp_path / "a.log"))])


def test_the_live_table_shows_state_time_and_the_logs_last_line(tmp_path):
    jobs = [python("first", "pass", minutes=120), python("second", "pass"), python("third", "pass", minutes=3)]
    shown = LiveTable({job.name: job.minutes for job in jobs})
    outcomes = run_jobs([python("second", "raise SystemExit('it broke, ' + 'at length ' * 20)")], tmp_path)
    shown.started("first", tmp_path / "log")
    shown.finished("second", **vars(outcomes["second"]))
    shown.tick({"first": "epoch 3 [of 100]"})
    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None)
    console.print(shown.table(10))
    assert max(map(len, console.file.getvalue().splitlines())) <= 110
    lines = {line.split()[0]: line for line in console.file.getvalue().splitlines() if line.strip()}
    assert "running" in lines["first"] and "2.0 h" in lines["first"] and "epoch 3 [of 100]" in lines["first"]
    assert "failed" in lines["second"] and "it broke" in lines["second"]
    assert "waiting" in lines["third"] and "3 min" in lines["third"]


def test_a_table_that_is_taller_than_the_terminal_shows_what_runs_and_counts_the_rest(tmp_path):
    shown = LiveTable({f"j{i}": None for i in range(40)})
    shown.started("j33", tmp_path / "log")
    console = Console(file=io.StringIO(), width=80)
    console.print(shown.table(20))
    reported = console.file.getvalue()
    assert "j33" in reported and "39 waiting" in reported and "j7" not in reported
    assert len(reported.splitlines()) < 6


@pytest.mark.parametrize(("seconds", "words"), [(4, "4 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds, words):
    assert duration(seconds) == words
