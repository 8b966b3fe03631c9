"""Nothing in the documents that is not so: every command parses, every name exists; what can be run is run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys

import numpy as np
import pytest
import torch

from adco import methods
from adco.config import validation
from adco.config.loading import load_recipe
from adco.evaluation.records import load_record
from adco.sample import make_sample
from adco.train.embedding_metrics import CONCERNS
from adco.train.logger import read_metrics
from adco.weights.backbone import load_backbone
from tests.docs.commands import (
    DOCUMENTS,
    FENCE,
    ROOT,
    SPAN,
    Wrong,
    check,
    check_names,
    commands,
    commands_in_help,
    py,
    words_of,
)
from tests.docs.runs import SMALL_PX, TRAIN, Place, run, why_not_run
from tools import convert_to_d2, train_adco, zoo
from transfer import knn, voc07


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_and_name_of_a_document_is_right(document):
    faults = []
    for command in commands(document):
        try:
            check(command.words)
        except Wrong as wrong:
            faults.append(f"{command}\n    {wrong}")
    try:
        check_names(document.read_text(), document.parent)
    except Wrong as wrong:
        faults.append(f"{document.name}: {wrong}")
    assert not faults, "\n".join(faults)


def test_every_example_in_a_tools_help_and_a_recipes_header_is_right():
    found, faults = list(commands_in_help()), []
    for command in found:
        try:
            check(command.words)
        except Wrong as wrong:
            faults.append(f"{command}\n    {wrong}")
    assert len({command.document for command in found}) > 50
    assert not faults, "\n".join(faults)


def first_column(page: str) -> list[str]:
    """The first cells of the tables of a document."""
    rows = re.findall(r"^\| (.+?) \|", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return [row for row in rows if not row.startswith("you ")]


def test_the_messages_in_the_troubleshooting_are_what_the_code_says():
    """The parts of a quoted message between what varies; a string that goes over several lines is joined first."""
    code = "".join(file.read_text() for room in ("adco", "detection", "transfer") for file in py(room))
    code = re.sub(r"\"\s*\n\s*f?\"", "", code)
    quoted = [span for cell in first_column("troubleshooting.md") for span in SPAN.findall(cell)]
    assert len(quoted) > 15
    for message in quoted:
        for part in re.split(r"\.\.\.|\b(?:\d+|nan|N|resnet50)\b", message):
            assert part.strip(" ,") in code, message


def test_the_warnings_that_are_explained_are_those_there_are():
    cells = first_column("pretraining.md")
    assert [cell for cell in cells if cell in {concern.name for concern in CONCERNS}] == [c.name for c in CONCERNS]
    judged = {concern.name: concern.bad for concern in CONCERNS}  # the limits in the third column
    assert judged["collapse"](0.049, 1, 1) and judged["collapse"](1, 1, 0.09) and not judged["collapse"](0.06, 1, 0.11)
    for name, limit in (("one row", 0.5), ("starving bank", 0.9), ("loader", 0.3)):
        assert judged[name](limit + 0.01) and not judged[name](limit - 0.01)
    assert judged["falling kNN"](79, 100) and not judged["falling kNN"](81, 100)


# The test of the test


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python tools/train_adco.py --config-file adco_r50_200ep --output out", "arguments: --output"),
        ("python tools/train_adco.py --config-file adco_r50_20ep", "adco_r50_20ep: no such recipe"),
        ("python tools/train_adco.py --config-file adco_r50_200ep optimiser.lr=1", "did you mean optimizer"),
        ("python tools/train_adco.py --config-file adco_r50_200ep batch=1", "batch=1 is out of range"),
        ("torchrun --nproc_per_gpu 8 tools/train_adco.py --config-file adco_r50_200ep", "required|unrecognized|nproc"),
        ("torchrun --nproc-per-node 8 tools/train_adco.py --config-file adco_r50_200ep --seeds 1", "--seeds"),
        ("python tools/train.py", "tools/train.py: no such file"),
        ("python -m adco.absent", "no such module"),
        ("python transfer/voc07.py --checkpoint x --protocol pcl2", "--protocol pcl2: not one of"),
        ("python transfer/voc07.py --checkpoint x --protocols pcl", "unrecognized arguments: --protocols"),
        ("python transfer/imagenet.py --protocol linear", "--protocol linear: not one of"),
        ("python transfer/knn.py --checkpoint zoo://moco-r50 --k 20", "no such model"),
        ("python transfer/knn.py --k twenty", "invalid int value: 'twenty'"),
        ("python tools/zoo.py show moco-r50", "no such model"),
        ("python tools/zoo.py get moco-v2-r50-800ep", "invalid choice"),
        ("python detection/train_net.py --config-file detection/configs/voc.yaml", "voc.yaml: no such file"),
        ("python detection/train_net.py --config-file detection/configs/coco_R_50_C4_2x_adco.yaml MODEL.WEIGTHS x",
         "WEIGTHS"),
        ("python detection/train_net.py --config-file detection/configs/Base-COCO-C4.yaml --trial 5", "--trial"),
        ("python tools/submit.py --nodes 2 -- --config-file adco_r50 --output-dir x", "adco_r50: no such recipe"),
        ("sbatch docs/slurm/train.sbatch --config-file adco_r50_200ep --output x", "arguments: --output"),
        ("sbatch docs/slurm/run.sbatch --config-file adco_r50_200ep", "docs/slurm/run.sbatch: no such file"),
        ("uv run python tools/absent.py", "tools/absent.py: no such file"),
        ("wget https://example.org", "wget: not a program"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_noticed(line, words):
    (command,) = words_of(line)
    with pytest.raises(Wrong, match=words):
        check(command)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[x](docs/absent.md)", "docs/absent.md: no such file"),
        ("[x](README.md#no-such-part)", "no such heading"),
        ("look into `adco/absent.py`", "`adco/absent.py`: no such file"),
        ("`adco/{bank,absent}.py`", "no such file"),
        ("set `optimizer.rate=1`", "`optimizer.rate=1`: no such key"),
        ("set `views.0.size=96`", "no such key"),
        ("the recipe adco_r50_300ep", "adco_r50_300ep: no such recipe"),
        ("`ADCO" + "_CASHE`", "_CASHE: no code reads"),
    ],
)
def test_a_wrong_name_is_noticed(text, words):
    with pytest.raises(Wrong, match=words):
        check_names(text, ROOT)


def test_what_is_right_passes():
    check_names(
        "[x](README.md#installing) `adco/*.py` `optimizer.lr=0.1` `views.0.px=96` adco_r50_200ep ADCO_CACHE", ROOT
    )
    (words,) = words_of("DETECTRON2_DATASETS=D python tools/zoo.py \\\n  show dino-r50  # a comment")
    check(words)


def test_commands_are_found_where_readers_find_them(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```\n# why\na b && c 'd e' \\\n  f  # g\n```\n```text\nno\n```\n`python\nx.py` `y.py`\n```python\nno\n```\n"
    )
    assert [(command.line, command.words) for command in commands(page)] == [
        (1, ("a", "b")),
        (1, ("c", "d e", "f")),
        (9, ("python", "x.py")),
    ]


def test_ci_runs_the_readmes_test_command():
    ci, readme = (ROOT / ".ci" / "run").read_text(), (ROOT / "README.md").read_text()
    assert ci.rstrip().splitlines()[-1] == "uv run pytest" in readme.splitlines()
    assert FENCE.search(readme)[2].splitlines() == [
        "pip install uv && uv run python tools/demo.py",
        "uv run pytest",
    ]


# The examples of docs/extending.md


def example(name: str):
    """A module of docs/examples, with the tables of methods put back by the caller's monkeypatch."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def barlow(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    monkeypatch.setitem(validation.CHOICES, "method", validation.CHOICES["method"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    return example("barlow_twins")


def test_the_examples_are_at_most_40_lines():
    found = list((ROOT / "docs" / "examples").glob("*.py"))
    assert len(found) >= 2 and all(len(path.read_text().splitlines()) <= 40 for path in found)


def test_the_example_objective_is_the_papers(barlow):
    """Eq. (1) of Barlow Twins with three loops: sum over i of (1 - c_ii)^2 + lambda x sum over i != j of c_ij^2."""
    method = barlow.BarlowTwins(load_recipe(ROOT / "docs/examples/barlow_twins.yaml", ["encoder.dim=5"]))
    views = [torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1)]
    loss = method.compute_loss(dict(enumerate(views)), {}, None).loss
    a, b = ([(row - view.mean(0)) / view.var(0, correction=0).sqrt() for row in view] for view in views)
    expected = 0.0
    for i in range(5):
        for j in range(5):
            c = sum(float(a[n][i] * b[n][j]) for n in range(7)) / 7
            expected += (1 - c) ** 2 if i == j else 0.005 * c**2
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_the_example_objective_can_be_descended(barlow):
    """On one batch, two noisy views of 16 images: the loss falls by more than a half in twelve steps."""
    recipe = load_recipe(ROOT / "docs/examples/barlow_twins.yaml", ["encoder.dim=16", "encoder.head_width=64"])
    torch.manual_seed(0)
    method = barlow.BarlowTwins(recipe)
    images = torch.randn(16, 3, 32, 32)
    views = [images + 0.5 * torch.randn_like(images) for _ in range(2)]
    optimizer, losses = torch.optim.SGD(method.encoder.parameters(), 0.03, momentum=0.9), []
    for _ in range(12):
        loss = method.compute_loss(dict(enumerate(method.encoder(views))), {}, None).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_example_objective_runs_by_its_recipe_and_converts(barlow, images, tmp_path, capsys):
    small = ["views.0.px=32", "views.1.px=32", "batch=16", "epochs=1", "data.workers=0", "probe.every_epochs=0"]
    words = ["--config-file", str(ROOT / "docs/examples/barlow_twins.yaml"), f"data.root={images}", *small]
    assert barlow.train_adco.main([*words, "encoder.dim=32", "--device", "cpu", "--output-dir", str(tmp_path)]) == 0
    assert {"loss", "off_diagonal"} < read_metrics(tmp_path / "metrics.jsonl")[-1].keys()
    assert load_backbone(next(tmp_path.glob("checkpoint_*.pth"))).source == "adco-suite"


def test_the_example_protocol_is_what_it_says(images, tmp_path, capsys):
    module = example("nearest_mean")
    rng = np.random.default_rng(0)
    train, val, labels = rng.normal(size=(12, 4)), rng.normal(size=(5, 4)), np.arange(12) % 3
    cosines = module.votes(*map(torch.from_numpy, (train, labels, val)), 3)
    for m, row in enumerate(val):
        for c in range(3):
            mean = np.mean(
                [x / np.linalg.norm(x) for x, label in zip(train, labels, strict=True) if label == c], axis=0
            )
            expected = row @ mean / np.linalg.norm(row) / np.linalg.norm(mean)
            assert float(cosines[m, c]) == pytest.approx(expected, rel=1e-6)
    words = ["--checkpoint", "random:resnet18", "--data", str(images), "--output-dir", str(tmp_path)]
    assert module.main([*words, "--image-px", "64", "--workers", "0"]) == 0
    record = load_record(tmp_path / "nearest-mean-cosine@64px.json")
    score = record.scores["top1"]
    assert record.protocol == "nearest-mean/cosine@64px" and score.low <= score <= score.high
    assert f"top1 {score:.2f} %" in capsys.readouterr().out


# What can be run is run: tests/docs/runs.py says how it is made small

LINES = {shlex.join(command.words): command for document in DOCUMENTS for command in commands(document)}
RUNS = [line for line in LINES if why_not_run(line) is None]


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    """A world, and a run of one epoch with its conversion and its name in the zoo."""
    root = tmp_path_factory.mktemp("place")
    place = Place(root / "DATA", root / "run" / "checkpoint_00000007.pth", root / "backbone.pkl", root / "cache")
    make_sample(place.world, 0, 240, 1)
    (place.world / "detection").mkdir()
    for name in ("VOCdevkit/VOC2007", "VOCdevkit/VOC2012", "coco"):
        (place.world / "detection" / name.split("/")[-1]).symlink_to(place.world / name)
    words = ["train_adco.py", "--config-file", "adco_r18_sample", "--output-dir", "run", "data.root=IMAGENET"]
    for line in (
        ["python", f"tools/{words[0]}", *words[1:]],
        ["python", "tools/convert_to_d2.py", "CHECKPOINT", "backbone.pkl"],
        ["python", "tools/zoo.py", "add", "of-the-documents", "CHECKPOINT"],
    ):
        done = run(tuple(line), place, root)
        assert done.returncode == 0, done.stderr
    return place


def test_most_commands_are_run():
    assert len(RUNS) > 25 and len(RUNS) >= len(LINES) / 2


@pytest.mark.slow
@pytest.mark.parametrize("line", RUNS)
def test_a_command_of_the_documents_runs(line, place, tmp_path):
    done = run(LINES[line].words, place, tmp_path)
    assert done.returncode == 0, f"{LINES[line]}\n{done.stderr[-2000:]}"


def test_the_first_steps_run(images, tmp_path, monkeypatch, capsys):
    """Pretrain, convert, classify, in this process; and what only prints."""
    monkeypatch.setenv("ADCO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    train = ["--config-file", "adco_r18_sample", f"data.root={images}", "--device", "cpu", "--output-dir", str(out)]
    assert train_adco.main([*train, *TRAIN, "batch=16"]) == 0
    checkpoint = capsys.readouterr().out.split()[-1]
    assert convert_to_d2.main([checkpoint, str(tmp_path / "adco.safetensors")]) == 0
    words = ["--data", str(images), "--output-dir", str(tmp_path / "knn"), "--k", "5", *SMALL_PX]
    assert knn.main(["--checkpoint", str(tmp_path / "adco.safetensors"), *words]) == 0
    assert "knn/k5-t0.07@64px: top1" in capsys.readouterr().out
    assert train_adco.main([*train, *TRAIN, "batch=16", "--resume"]) == 0
    assert voc07.main(["--protocol", "list"]) == 0 and zoo.main(["list"]) == 0
    assert zoo.main(["show", "moco-v2-r50-800ep"]) == 0
