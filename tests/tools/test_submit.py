"""The job that submitit runs: it stops when asked, is requeued, goes on; mistakes show before anything is queued."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from adco.launch import slurm
from adco.utils.errors import REQUEUE, UserError
from tests import ROOT
from tests.waiting import wait_until
from tools import submit

RECIPE = ("--config-file", "adco_r50_200ep", "data.root=IMAGES")
STUB = """
import json, os, signal, sys, time
from pathlib import Path
folder, end = Path(sys.argv[1]), int(sys.argv[2])
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
runs = len(list(folder.glob("run*")))
rank = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
facts = {"parent": os.getppid(), "words": sys.argv[3:], "rank": rank}
(folder / "note").write_text(json.dumps(facts))
(folder / "note").rename(folder / f"run{runs}")
deadline = time.time() + 300
while end == 75 and runs == 0 and not asked and time.time() < deadline:
    time.sleep(0.02)
sys.exit(end if runs == 0 else 0)
"""


def test_ranks_come_from_submitits_environment():
    task = SimpleNamespace(job_id="12345_6", global_rank=9, local_rank=1, num_tasks=16, hostnames=["node3", "node7"])
    assert slurm.ranks_of(task) == {
        "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "node3", "MASTER_PORT": "23456",
    }  # fmt: skip


def test_a_stop_is_passed_on_and_the_exit_code_comes_back():
    listen = "import signal, sys, time\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n"
    code = listen + "print(1, flush=True)\ntime.sleep(600)"
    wrapper = (
        "import os, sys, signal\nfrom adco.launch import slurm\n"
        f"sys.exit(slurm.run_until_stopped([sys.executable, '-c', {code!r}], dict(os.environ)))"
    )
    outer = subprocess.Popen([sys.executable, "-c", wrapper], cwd=ROOT, stdout=subprocess.PIPE)
    assert outer.stdout.readline() == b"1\n"
    outer.send_signal(signal.SIGUSR1)
    assert outer.wait(240) == REQUEUE


def waited_for(path: Path) -> dict:
    wait_until(path.is_file, f"{path.name} is written")
    return json.loads(path.read_text())


def started(folder: Path, end: int, monkeypatch):
    """A job on this machine whose training is a stub that ends with `end` at first, and with 0 when it resumes."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(ROOT)  # where the job finds `tools`
    (folder / "stub.py").write_text(STUB)
    training = slurm.SubmittedCommand((sys.executable, str(folder / "stub.py"), str(folder), str(end), "--resume"))
    return slurm.submit(training, "local", folder / "logs", {"timeout_min": 5, "tasks_per_node": 1, "gpus_per_node": 0})


def test_a_job_that_is_asked_to_stop_is_requeued_and_goes_on(tmp_path, monkeypatch):
    job = started(tmp_path, REQUEUE, monkeypatch)
    first = waited_for(tmp_path / "run0")
    assert first["words"] == ["--resume"]
    assert first["rank"] == ["0", "1", "0"]
    os.kill(first["parent"], signal.SIGUSR1)  # what SLURM sends to every task
    assert waited_for(tmp_path / "run1")["words"] == ["--resume"]
    assert job.result() == "done"
    assert not (tmp_path / "run2").exists()


def test_a_training_that_fails_is_not_requeued(tmp_path, monkeypatch):
    job = started(tmp_path, 2, monkeypatch)
    assert "the training ended with exit code 2" in str(job.exception())
    assert not (tmp_path / "run1").exists()


def test_a_dry_run_says_what_would_be_submitted_and_needs_no_submitit(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    output = tmp_path / "out"
    assert (
        submit.main(["--dry-run", "--nodes", "2", "--partition", "gpu", "--", *RECIPE, "--output-dir", str(output)])
        == 0
    )
    reported = capsys.readouterr().out
    for line in (
        "nodes: 2",
        "tasks_per_node: 8",
        "timeout_min: 1440",
        "slurm_partition: gpu",
        "slurm_signal_delay_s: 120",
    ):
        assert line in reported.splitlines()
    assert re.search(rf"each rank: \S+ \S+train_adco.py --config-file .* --output-dir {output} --resume\n", reported)
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (("--hours", "0", "--", *RECIPE), "--hours 0.0: expected at least 0.1"),
        (("--nodes", "2", "--cluster", "local", "--", *RECIPE), "this machine is one"),
        (("--", *RECIPE, "optimiser.lr=1"), "unknown key optimiser.lr"),
        (("--gpus-per-node", "7", "--", *RECIPE), "batch=256 does not divide into 7 parts"),
    ],
)
def test_mistakes_show_before_anything_is_queued(words, reported, tmp_path, capsys):
    assert submit.main([*words, "--output-dir", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert reported in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_training_without_recipe_or_folder_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        submit.main(["--", "data.root=IMAGES"])
    assert stopped.value.code == 2
    assert "--config-file, --output-dir" in capsys.readouterr().err


def test_submitit_absent_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="pip install submitit, or use docs/slurm/train.sbatch"):
        slurm.submit(slurm.SubmittedCommand(()), "slurm", tmp_path, {})


@pytest.mark.skipif(shutil.which("srun") is not None, reason="this machine has SLURM")
def test_slurm_absent_is_one_clear_line(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match='slurm does not take the job: Could not detect "srun"'):
        slurm.submit(slurm.SubmittedCommand(()), "slurm", tmp_path, {})


def through_sbatch_file(tmp_path: Path, code: int) -> tuple[int, list[str]]:
    """Run docs/slurm/train.sbatch with stand-ins for SLURM's programs; its exit code and what it called."""
    called = tmp_path / "called"
    for name, body in {
        "srun": f'echo "srun $MASTER_ADDR:$MASTER_PORT $*" >> {called}; exit {code}',
        "scontrol": f'[ "$1" = show ] && printf "%s\\n" node3 node7 || echo "scontrol $*" >> {called}',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[3,7]", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    line = ["bash", str(ROOT / "docs" / "slurm" / "train.sbatch"), "--config-file", "a recipe", "optimizer.lr=1"]
    return subprocess.run(line, env=os.environ | slurm).returncode, called.read_text().splitlines()


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (75, True), (138, True)])
def test_the_sbatch_file_requeues_what_was_interrupted_and_nothing_else(code, requeued, tmp_path):
    returned, called = through_sbatch_file(tmp_path, code)
    assert returned == code
    training = "python tools/train_adco.py --config-file a recipe optimizer.lr=1 --resume"
    assert called[0] == f"srun node3:23456 --kill-on-bad-exit=1 {training}"
    assert called[1:] == (["scontrol requeue 123456"] if requeued else [])


def test_help_and_unknown_words(capsys):
    for words, code in (("--help", 0), ("--surprise", 2)):
        with pytest.raises(SystemExit) as stopped:
            submit.main([words])
        assert stopped.value.code == code
    assert "--dry-run" in capsys.readouterr().out
