"""All of the project in ten minutes on two cores: draw a sample world, pretrain, convert, detect, classify, report.

Everything is written to the output folder. The same command resumes; finished stages are not run again.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adco import report
from adco.evaluation.records import load_record
from adco.launch import supervisor
from adco.train import checkpoint
from adco.utils.errors import UserError, command
from adco.utils.files import output_folder

MODELS = ("random", "pretrained")
IMAGE_PX = "64"  # frozen features at the images' own scale; the protocol names say so
STAGES = 11
LEAD = (
    "Random weights against AdCo pretraining, on a world that a program drew: the scores compare the two rows, and are "
    f"no VOC07, ImageNet or COCO numbers. @{IMAGE_PX}px: the protocol at another input size than its own 224 px; the "
    "network was pretrained at 40 px."
)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run every stage that has no result yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("demo_output"), help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the pretraining (default: %(default)s)")
    parser.add_argument("--images", type=int, default=2000, help="training images to draw (default: %(default)s)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="overrides of the pretraining recipe, e.g. epochs=1"
    )
    args = parser.parse_intermixed_args(argv)
    out, start = output_folder(args.output_dir), time.perf_counter()
    world, run = out / "world", out / "pretraining"
    stages = Stages(
        out,
        {
            "DETECTRON2_DATASETS": str(world / "VOCdevkit"),
            "PYTHONWARNINGS": "ignore",
            "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow a busy machine down several times
        },
    )

    stages.run(
        "draw the sample world", "tools/make_sample.py", world, "--seed", args.seed, "--images", args.images,
        done=world / "sample.json",
    )  # fmt: skip
    stages.run(
        "pretrain with AdCo", "tools/train_adco.py", "--config-file", "adco_r18_sample", "--seed", args.seed,
        "--output-dir", run, "--resume", f"data.root={world / 'imagenet'}", *args.overrides, done=run / "record.json",
    )  # fmt: skip
    weights = {"random": f"random:resnet18:{args.seed}", "pretrained": checkpoint.newest_intact(run)}
    for model in MODELS:
        evaluate(stages, model, weights[model], world)
    sources = [f"{model}={out / model}" for model in MODELS]
    detections = [word for model in MODELS for word in ("--detections", f"{model}={out / model / 'detection'}")]
    stages.run(
        "report", "tools/report.py", *sources, run, *detections, "--min-score", 0.1, "--no-papers",
        "--title", "AdCo demo", "--lead", LEAD, "--output", out, done=out / "report.html",
    )  # fmt: skip

    records = {model: [load_record(path) for path in record_paths(out / model)] for model in MODELS}
    rows = report.table_rows(records)
    print(f"\n{report.as_text(rows, MODELS)}\n")
    print(f"report: {out / 'report.html'}   ({(time.perf_counter() - start) / 60:.1f} minutes)")
    return 0


class Stages:
    """Runs the project's tools one after the other, each in a process of its own, and prints which one and how long.

    Their progress and their errors go to the terminal, and a stage may be chosen by the result of one before it. So
    the stages are not jobs of `adco.launch.jobs`, which go to logs behind a table.

    Args:
        out: The output folder.
        environment: Variables of the tools' processes, added to those of this one.
    """

    def __init__(self, out: Path, environment: dict[str, str]):
        self.out, self.environment, self.number = out, environment, 0

    def run(self, title: str, tool: str, *arguments: object, done: Path) -> None:
        """Run a tool unless its result exists.

        Args:
            title: What is printed.
            tool: The script, relative to the project.
            *arguments: Its arguments.
            done: The file that it writes last.

        Raises:
            UserError: When the tool fails; names the stage.
        """
        self.number += 1
        label = f"[{self.number}/{STAGES}] {title}"
        if done.exists():
            print(f"{label}: already done", flush=True)
            return
        print(f"{label} ...", flush=True)
        start = time.perf_counter()
        line = [sys.executable, str(ROOT / tool), *map(str, arguments)]
        code = _run(line, os.environ | self.environment)
        if code:
            raise UserError(
                f"the demo stopped at '{title}' (exit code {code}, its message is above); the same command resumes"
            )
        print(f"{label}: {time.perf_counter() - start:.0f} s", flush=True)


def _run(line: list[str], environment: dict[str, str]) -> int:
    """Run a tool and return its exit code. Ctrl-C ends it by SIGTERM, which works while it still imports, too."""
    with supervisor.start(line, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise


def evaluate(stages: Stages, model: str, weights: object, world: Path) -> None:
    """Run the frozen-feature benchmarks and the smoke detector on one backbone; the records go below OUTPUT/model."""
    out = stages.out / model
    shared = ("--checkpoint", weights, "--output-dir", out / "transfer", "--image-px", IMAGE_PX)
    stages.run(
        f"kNN, {model}", "transfer/knn.py", *shared, "--data", world / "imagenet", "--k", 20,
        done=out / "transfer" / f"knn-k20-t0.07@{IMAGE_PX}px.json",
    )  # fmt: skip
    stages.run(
        f"VOC07 SVM, {model}", "transfer/voc07.py", *shared, "--data", world / "VOCdevkit", "--protocol", "pcl",
        done=out / "transfer" / f"voc07-svm-pcl@{IMAGE_PX}px.json",
    )  # fmt: skip
    stages.run(
        f"convert, {model}", "tools/convert_to_d2.py", weights, out / "detectron2.pkl", done=out / "detectron2.pkl"
    )
    stages.run(
        f"fine-tune a detector, {model}", "detection/train_net.py",
        "--config-file", ROOT / "detection" / "configs" / "smoke_voc_R_18_C4.yaml", "--num-gpus", 0,
        "MODEL.WEIGHTS", out / "detectron2.pkl", "OUTPUT_DIR", out / "detection",
        done=out / "detection" / "record.json",
    )  # fmt: skip


def record_paths(folder: Path) -> list[Path]:
    """The records of one model, frozen features first."""
    return [*sorted((folder / "transfer").glob("*.json")), folder / "detection" / "record.json"]


if __name__ == "__main__":
    sys.exit(main())
