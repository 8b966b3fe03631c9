"""The jobs of evidence.yaml: their order, expected durations and records."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adco.config.loading import load_recipe
from adco.launch.jobs import Job
from benchmarks.experiments.plan import EvidenceStage, ExperimentDirs

PROBE_COST = 1 / 4  # of embedding an image, relative to training on it: two views forward and one backward
VOC_MINUTES, DETECTION_MINUTES = {"cpu": 2, "cuda": 1}, {"cpu": 12, "cuda": 3}


def build(plan: Mapping, dirs: ExperimentDirs, rate: float | None = None) -> list[EvidenceStage]:
    """Every stage in the order of the plan. rate: images a second of single-crop AdCo; default: the plan's."""
    maker = _Maker(plan, dirs, rate or float(plan["images_per_second"][dirs.device]))
    return list(maker.stages())


class _Maker:
    """Builds stages from the plan; nothing here reads or writes a file."""

    def __init__(self, plan: Mapping, dirs: ExperimentDirs, rate: float):
        self.plan, self.dirs, self.rate = plan, dirs, rate
        self.imagenette, self.holdout = dirs.data / "imagenette160", dirs.output / "holdout"
        self.no_images = dirs.missing("imagenette160")
        self.epochs = self._here(plan["figure1"]["epochs"])
        probes = {key: plan["figure1"][key] for key in ("probe_epochs", "linear_epochs")}
        self.probes = {key: [e for e in at if e <= self.epochs] for key, at in probes.items()}

    def stages(self) -> Iterator[EvidenceStage]:
        methods = self.plan["methods"]
        waves = {"figure1": 1, "partners": 2, "more": 3}
        makers = {name: self._wave(name, number) for name, number in waves.items()}
        makers |= {"seeds": self._seeds(), "times": self._times(), "figure2": self._figure2(), "gpu": self._gpu()}
        makers |= {"downstream": self._downstream(), "detection": self._detection()}
        makers |= {"table5": self._table5(), "ablations": self._ablations()}
        assert {method["wave"] for method in methods.values()} <= set(waves.values())
        for section in self.plan["order"]:
            yield from makers[section]

    def minutes(self, images: float, cost: float = 1.0) -> float:
        return round(images * cost / self.rate / 60, 1)

    def _wave(self, section: str, wave: int) -> Iterator[EvidenceStage]:
        """The grids, runs and curves of the methods of a wave, with their first seed."""
        names = [name for name, method in self.plan["methods"].items() if method["wave"] == wave]
        for name in names:
            yield from self._grid(section, name)
        for name in names:
            yield self._run(section, name, 0)
        for name in names:
            yield self._curve(section, f"{name}-s0", self.probes)
        if {self.plan["lead"]["first"], self.plan["lead"]["second"]} <= set(names):
            yield self._lead(section, 1)

    def _seeds(self) -> Iterator[EvidenceStage]:
        most = max(method["seeds"] for method in self.plan["methods"].values())
        for seed in range(1, most):
            names = [name for name, method in self.plan["methods"].items() if method["seeds"] > seed]
            for name in names:
                yield self._run("seeds", name, seed)
            for name in names:
                yield self._curve("seeds", f"{name}-s{seed}", self.probes)
            if {self.plan["lead"]["first"], self.plan["lead"]["second"]} <= set(names):
                yield self._lead("seeds", seed + 1)

    def _grid(self, section: str, name: str) -> Iterator[EvidenceStage]:
        method, epochs = self.plan["methods"][name], self.plan["grid"]["epochs"]
        for number, trial in enumerate(method["trials"]):
            folder = self._trial(name, number)
            words = self._training(method, self.holdout, epochs, folder, 0) + trial.split()
            words += [f"probe.every_epochs={epochs}", "checkpoint.keep=1"]
            images = self.dirs.images * (0.8 * epochs * method["cost"] + PROBE_COST)
            yield self._stage(section, f"grid-{name}-{number}", words, (), images, [folder / "record.json"],
                              {f"grid/{name}-{number}.json": folder / "record.json"})  # fmt: skip

    def _run(self, section: str, name: str, seed: int) -> EvidenceStage:
        epochs, method = self.epochs, self.plan["methods"][name]
        folder = self.dirs.output / "runs" / f"{name}-s{seed}"
        words = self._training(method, self.imagenette, epochs, folder, seed)
        words.append(f"checkpoint.keep={epochs + 1}")  # accuracy_curve.py removes those it does not need
        return self._trained(section, f"run-{name}-s{seed}", name, words, epochs, folder)

    def _trained(self, section: str, job: str, name: str, words: list[str], epochs: int, folder: Path) -> EvidenceStage:
        """A pretraining with the overrides of the best trial of the method's grid."""
        method, trials = self.plan["methods"][name], []
        for number, trial in enumerate(method["trials"]):
            trials += ["--trial", str(self._trial(name, number)), trial]
        words = [sys.executable, "benchmarks/experiments/best_trial.py", *trials, "--", *words]
        after = tuple(f"grid-{name}-{number}" for number in range(len(method["trials"])))
        cost = 2 * method["cost"] if "contrast.symmetric=true" in words and not method.get("set") else method["cost"]
        return self._stage(section, job, words, after, self.dirs.images * epochs * cost, [folder / "record.json"])

    def _curve(self, section: str, run: str, at: Mapping) -> EvidenceStage:
        epochs, linear = at["probe_epochs"], at["linear_epochs"]
        source, folder = self.dirs.output / "runs" / run, self.dirs.output / "curves" / run
        words = self._python("benchmarks/experiments/accuracy_curve.py", "--run", source, "--data", self.imagenette)
        words += ["--output-dir", folder]
        words += ["--image-px", self.plan["image_px"], "--workers", self._workers(), "--epochs", *epochs]
        words += ["--linear-epochs", *linear, "--device", self.dirs.device, "--prune"]
        files = {kind: folder / f"{kind}.json" for kind in ("knn", "linear")}
        images = 1.4 * self.dirs.images * (PROBE_COST * 2 * len(epochs) + 0.4 * len(linear))
        return self._stage(section, f"curve-{run}", words, (f"run-{run}",), images, files.values(),
                           {f"{section_of(run)}/{run}-{kind}.json": path for kind, path in files.items()})  # fmt: skip

    def _lead(self, section: str, seeds: int) -> EvidenceStage:
        lead, curves = self.plan["lead"], self.dirs.output / "curves"
        epochs, after = [epoch for epoch in lead["epochs"] if epoch <= self.epochs], []
        words = self._python("benchmarks/experiments/lead.py", "--epochs", *epochs)
        for side in ("first", "second"):
            runs = [f"{lead[side]}-s{seed}" for seed in range(seeds)]
            words += [f"--{side}", *(str(curves / run) for run in runs)]
            after += [f"curve-{run}" for run in runs]
        path = self.dirs.output / "lead" / f"{seeds}-seeds.json"
        words += ["--output", str(path)]
        return self._stage(section, f"lead-{seeds}-seeds", words, tuple(after), 0, [path],
                           {f"figure1/lead-{seeds}-seeds.json": path})  # fmt: skip

    def _times(self) -> Iterator[EvidenceStage]:
        path = self.dirs.output / "times" / "times.json"
        words = self._python("benchmarks/speed/times.py", "--device", self.dirs.device, "--output", path)
        yield EvidenceStage("times", self._job("times", words, (), {"cpu": 6, "cuda": 3}[self.dirs.device], [path]),
                    {"table5/times.json": path})  # fmt: skip

    def _figure2(self) -> Iterator[EvidenceStage]:
        at, path = self.plan["figure2"], self.dirs.output / "figure2" / "bank.png"
        runs, record = [f"{name}-s0" for name in at["methods"]], path.with_name("record.json")
        words = self._python(
            "benchmarks/experiments/bank_outliers.py", *(self._last(run) for run in runs), "--data", self.imagenette
        )
        words += ["--output", path, "--rows", at["rows"], "--images", at["images"], "--device", self.dirs.device]
        stage = self._stage(
            "figure2", "figure2", words, tuple(f"run-{run}" for run in runs), 4 * at["images"], [record]
        )
        yield replace(stage, records={"figure2/bank.json": record, "figure2/bank.png": path})

    def _downstream(self) -> Iterator[EvidenceStage]:
        at, data = self.plan["downstream"], self.dirs.data / "voc07_subset" / "VOCdevkit"
        for name, checkpoint, after in self._evaluated(at["methods"]):
            folder = self.dirs.output / "voc07" / name
            words = self._python("transfer/voc07.py", "--checkpoint", checkpoint, "--data", data)
            words += ["--image-px", self.plan["image_px"], "--workers", self._workers(), "--output-dir", folder]
            words += [word for protocol in at["protocols"] for word in ("--protocol", protocol)]
            words += [word for k in at["shots"] for word in ("--shots", k)]
            kinds = {p: f"voc07-{p}" if p.startswith("lowshot") else f"voc07-svm-{p}" for p in at["protocols"]}
            files = {p: folder / f"{kind}@{self.plan['image_px']}px.json" for p, kind in kinds.items()}
            words += ["--device", self.dirs.device]
            job = self._job(f"voc07-{name}", words, after, VOC_MINUTES[self.dirs.device], files.values())
            records = {f"downstream/{name}-{path.name}": path for path in files.values()}
            yield EvidenceStage("downstream", job, records, self.dirs.missing("voc07_subset"))

    def _detection(self) -> Iterator[EvidenceStage]:
        at = self.plan["downstream"]
        for data, kind in (("voc07_subset", "smoke_voc_R_18_C4"), ("coco_mini", "smoke_coco_R_18_C4")):
            for name, checkpoint, after in self._evaluated(at["methods"]):
                yield self._detector(data, kind, name, checkpoint, after, at["detection_trials"])

    def _detector(self, data: str, kind: str, name: str, checkpoint: str, after, trials: int) -> EvidenceStage:
        """One job that converts the checkpoint, unless it is random, and fine-tunes `trials` times."""
        folder = self.dirs.output / "detection" / f"{name}-{data}"
        config = kind if name != "random" else f"{kind}_random"
        train = ["--config-file", f"detection/configs/{config}.yaml", "--num-gpus",
                 "0" if self.dirs.device == "cpu" else "1", "--trials", str(trials)]  # fmt: skip
        words = self._python(
            "benchmarks/experiments/detector.py", "--checkpoint", checkpoint, "--", *train, "OUTPUT_DIR", folder
        )
        root = self.dirs.output / "datasets"
        job = self._job(f"detection-{name}-{data}", words, after,
                        DETECTION_MINUTES[self.dirs.device] * trials / 3, [folder / "record.json"],
                        {"DETECTRON2_DATASETS": str(root)})  # fmt: skip
        return EvidenceStage("detection", job, {f"detection/{name}-{data}.json": folder / "record.json"},
                     self.dirs.missing(data))  # fmt: skip

    def _evaluated(self, methods: Sequence[str]) -> list[tuple[str, str, tuple[str, ...]]]:
        """What is evaluated downstream: name, checkpoint, and the jobs before it. Random weights come last."""
        runs = [f"{name}-s0" for name in methods]
        return [*((run, str(self._last(run)), (f"run-{run}",)) for run in runs), ("random", "random:resnet18", ())]

    def _table5(self) -> Iterator[EvidenceStage]:
        at = self.plan["table5"]
        for symmetric in at["symmetric"]:
            for size in at["sizes"]:
                name = f"k{size}{'-sym' if symmetric else ''}"
                change = [f"bank.size={size}", f"contrast.symmetric={str(symmetric).lower()}"]
                yield from self._short("table5", name, at, change)

    def _ablations(self) -> Iterator[EvidenceStage]:
        at = self.plan["ablations"]
        for name, change in at["changes"].items():
            yield from self._short("ablations", name, at, change)

    def _short(self, section: str, name: str, at: Mapping, change: Sequence[str]) -> Iterator[EvidenceStage]:
        """A short run with one change, and its kNN and linear top-1 at the end.

        The change comes after the overrides that the grid chose, and so takes precedence.
        """
        run, epochs = f"{section}-{name}-s0", at["epochs"]
        folder = self.dirs.output / "runs" / run
        words = self._training(self.plan["methods"][at["method"]], self.imagenette, epochs, folder, 0)
        words.append("checkpoint.keep=1")
        stage = self._trained(section, f"run-{run}", at["method"], words, epochs, folder)
        last = [word for item in change for word in ("--last", item)]
        position = stage.job.command.index("--")
        command = (*stage.job.command[:position], *last, *stage.job.command[position:])
        doubled = 2 if "contrast.symmetric=true" in change else 1
        minutes = stage.job.minutes and stage.job.minutes * doubled
        yield replace(stage, job=replace(stage.job, command=command, minutes=minutes))
        yield self._curve(section, run, {"probe_epochs": [epochs], "linear_epochs": [epochs]})

    def _gpu(self) -> Iterator[EvidenceStage]:
        missing = "" if self.dirs.device == "cuda" else "not run: no GPU"
        folder = self.dirs.output / "gpu"
        for name, minutes in (("training", 10), ("step", 10), ("input", 10)):
            path = folder / f"{name}.json"
            words = self._python("benchmarks/run.py", name, "--device", "cuda", "--output-dir", folder)
            yield self._gpu_stage(name, words, minutes, path, missing)
        for name, minutes, more in (("shares", 3, []), ("precision", 10, ["--data", self.imagenette])):
            path = folder / f"{name}.json"
            words = self._python(f"benchmarks/speed/{name}.py", *more, "--device", "cuda", "--output", path)
            yield self._gpu_stage(name, words, minutes, path, missing)

    def _gpu_stage(self, name: str, words: list[str], minutes: float, path: Path, missing: str) -> EvidenceStage:
        return EvidenceStage(
            "gpu", self._job(f"gpu-{name}", words, (), minutes, [path]), {f"gpu/{name}.json": path}, missing
        )

    def _training(self, method: Mapping, data: Path, epochs: int, folder: Path, seed: int) -> list[str]:
        words = self._python("tools/train_adco.py", "--config-file", method["recipe"], "--resume")
        words += ["--output-dir", str(folder), f"data.root={data}", f"epochs={epochs}", f"seed={seed}"]
        words += [f"device={self.dirs.device}", f"compute.precision={self.dirs.precision}"]
        return [*words, *self._common(), *method.get("set", [])]

    def _common(self) -> list[str]:
        values = {key: self._here(value) for key, value in self.plan["common"].items()}
        return [f"{key}={str(value).lower()}" for key, value in values.items()]

    def _here(self, value: object) -> object:
        """A value of the plan; of a mapping the value for this device."""
        return value[self.dirs.device] if isinstance(value, Mapping) else value

    def _stage(self, section, name, words, after, images, outputs, records: Mapping | None = None) -> EvidenceStage:
        job = self._job(name, words, after, self.minutes(images), outputs)
        return EvidenceStage(section, job, records or {}, self.no_images)

    def _job(self, name, words, after, minutes, outputs, environment: Mapping | None = None) -> Job:
        words = tuple(map(str, words))
        return Job(name, words, after, minutes, tuple(outputs), environment=dict(environment or {}))

    def _python(self, *words: object) -> list[str]:
        return [sys.executable, *map(str, words)]

    def _workers(self) -> int | str:
        return 1 if self.dirs.device == "cpu" else "auto"

    def _trial(self, name: str, number: int) -> Path:
        return self.dirs.output / "grid" / f"{name}-{number}"

    def _last(self, run: str) -> Path:
        """The last checkpoint of a run of figure 1."""
        name, epochs = run.rpartition("-s")[0], self.epochs
        batch = _batch_of(self.plan["methods"][name]["recipe"], tuple(self._common()))
        return self.dirs.output / "runs" / run / f"checkpoint_{epochs * (self.dirs.images // batch):08d}.pth"


@functools.cache
def _batch_of(recipe: str, overrides: tuple[str, ...]) -> int:
    return load_recipe(recipe, overrides).batch


def section_of(run: str) -> str:
    """The folder of the results for a run's curves."""
    return run.split("-")[0] if run.split("-")[0] in ("table5", "ablations") else "figure1"
