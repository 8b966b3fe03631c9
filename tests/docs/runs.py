"""Shortens the commands of the documents so that they can be run: small data and short runs.

Each command runs alone, in an empty folder, on a generated dataset of 240 images. A run of one epoch replaces every
checkpoint that a document names. What cannot be run is in NOT_RUN with its reason.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.docs.commands import ROOT

NOT_RUN = {
    r"pip |uv sync|uv run$|uv run \.\.\.|export ": "installs, or sets something",
    r".*pytest": "these tests",
    r".*(ruff|basedpyright|pre-commit)": "tests/test_project.py, tests/test_types.py",
    r".*tools/demo\.py": "tests/tools/test_demo.py runs it",
    r".*benchmarks/": "needs the whole machine; tests/benchmarks/test_run.py",
    r".*tests/(faults|check_golden)": "tests/faults, tests/test_check_golden.py",
    r"sbatch |.*--nnodes 2": "needs SLURM or several machines",
    r".*/path/to/detectron2": "needs a clone; tests/detection/test_train_net.py runs the stock script",
    r".*detection/draw\.py": "needs a finished detector; the demo runs it",
    r".*zoo\.py download": "needs the network; tests/adco/weights/test_zoo.py",
}
VIEWS = [f"views.{i}.{value}" for i in (0, 1) for value in ("px=32", "blur_p=0")]
TRAIN = ["epochs=1", "batch=32", "data.workers=0", "encoder.arch=resnet18", "bank.size=64", "probe.every_epochs=0",
         "optimizer.warmup_epochs=0", *VIEWS]  # fmt: skip
SMALL_PX = ["--image-px", "64", "--workers", "0"]
CLASSIFIERS = [*SMALL_PX, "--epochs", "1", "--train-batch", "16", "--evaluations", "1"]
DETECTOR = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "0.001",
            "TEST.PRECISE_BN.NUM_ITER", "1", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]  # fmt: skip
SHORTER = {
    "tools/train_adco.py": TRAIN,
    "docs/examples/barlow_twins.py": TRAIN,
    "docs/examples/nearest_mean.py": SMALL_PX,
    "transfer/knn.py": SMALL_PX,
    "transfer/linear.py": SMALL_PX,
    "transfer/voc07.py": [*SMALL_PX, "--shots", "1", "--shots", "2"],
    "transfer/imagenet.py": CLASSIFIERS,
    "transfer/places205.py": CLASSIFIERS,
    "tools/benchmark.py": ["--dry-run", "--no-measure"],
    "tools/submit.py": ["--dry-run"],
    "tools/draw_bank.py": ["--images", "40", "--rows", "64", "--workers", "0"],
    "detection/train_net.py": DETECTOR,
}


@dataclass(frozen=True)
class Place:
    """Replacements for the reader's own files.

    Attributes:
        data: The generated datasets.
        checkpoint: Of a finished run.
        converted: Its backbone for detectron2.
        cache: The cache folder.
    """

    data: Path
    checkpoint: Path
    converted: Path
    cache: Path

    def names(self) -> dict[str, str]:
        """A pattern in a command's word -> its replacement."""
        folder = str(self.data / "imagenet")
        return {
            r"^(output/\S+/checkpoint_\d+\.pth|CHECKPOINT|FILE)$": str(self.checkpoint),
            r"zoo://[a-z][\w-]*": "zoo://of-the-documents",
            r"\b(FOLDER|IMAGENET|IMAGENETTE|DATA/imagenet)$": folder,
            r"^(DATA|\$DETECTRON2_DATASETS)$": str(self.data),
            r"^VOCdevkit$": str(self.data / "VOCdevkit"),
            r"^PLACES205$": str(self.data / "places205"),
            r"^DIGITS$": "0" * 64,
            r"^(NAME)$": "my-name",
            r"^detection/configs/pascal\w+_adco": "detection/configs/smoke_voc_R_18_C4",
            r"^detection/configs/coco\w+_adco": "detection/configs/smoke_coco_R_18_C4",
        }


def not_run_reason(line: str) -> str | None:
    """Why a command is not run; None if it is run."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, line)), None)


def small(words: tuple[str, ...], place: Place) -> list[str]:
    """The command on the small dataset, as words for this Python."""
    words = list(words[2:] if words[:2] == ("uv", "run") else words)
    if words[0] == "torchrun":
        words = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1",
                 *words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]]  # fmt: skip
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    script, given = words[at], [_replaced(word, place) for word in words[at + 1 :]]
    if script == "detection/train_net.py":
        given = _valued(_valued(given, "--num-gpus", "0"), "--trials", "2")
        given = [str(place.converted) if word.endswith(".pkl") else word for word in given]
    if script == "tools/make_sample.py":
        given = [*given, "--images", "100", "--workers", "1"]
        given[0] = "drawn"
    extra = SHORTER.get(script, [])
    split = given.index("--") if "--" in given else len(given)
    given = [*given[:split], *extra, *given[split:]] if script == "tools/submit.py" else [*given, *extra]
    return [sys.executable, *words[1:at], str(ROOT / script), *given]


def run(words: tuple[str, ...], place: Place, folder: Path) -> subprocess.CompletedProcess:
    """Run the small form of a command in `folder`, without the network, with a copy of the README to change."""
    if "README.md" in words:
        shutil.copy(ROOT / "README.md", folder)
    own = {
        "ADCO_CACHE": str(place.cache),
        "ADCO_OFFLINE": "1",
        "DETECTRON2_DATASETS": str(place.data / "detection"),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
    }
    return subprocess.run(small(words, place), cwd=folder, env=os.environ | own, capture_output=True, text=True)


def _replaced(word: str, place: Place) -> str:
    for pattern, value in place.names().items():
        word = re.sub(pattern, value, word)
    return str(ROOT / word) if word.startswith(("detection/configs/", "adco/recipes/", "docs/")) else word


def _valued(words: list[str], flag: str, value: str) -> list[str]:
    """The words with another value after `flag`, if the flag is there."""
    return [value if i and words[i - 1] == flag else word for i, word in enumerate(words)]
