"""The documents are right: every command parses, every name exists, and what can be run is run."""

from __future__ import annotations

import re
import shlex

import pytest

from adco.sample import make_sample
from adco.train.embedding_metrics import CONCERNS
from tests.docs.commands import (
    DOCUMENTS,
    FENCE,
    ROOT,
    SPAN,
    Wrong,
    check,
    commands,
    commands_in_help,
    words_of,
)
from tests.docs.names import check_names, python_files
from tests.docs.runs import SMALL_PX, TRAIN, Place, not_run_reason, run
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
    examples, faults = list(commands_in_help()), []
    for command in examples:
        try:
            check(command.words)
        except Wrong as wrong:
            faults.append(f"{command}\n    {wrong}")
    assert len({command.document for command in examples}) > 50
    assert not faults, "\n".join(faults)


def first_column(page: str) -> list[str]:
    """The first cells of the tables of a document."""
    rows = re.findall(r"^\| (.+?) \|", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return [row for row in rows if not row.startswith("you ")]


def test_the_messages_in_the_troubleshooting_are_what_the_code_says():
    """Compares the constant parts of each quoted message; strings over several lines are joined first."""
    code = "".join(file.read_text() for top in ("adco", "detection", "transfer") for file in python_files(top))
    code = re.sub(r"\"\s*\n\s*f?\"", "", code)
    quoted = [span for cell in first_column("troubleshooting.md") for span in SPAN.findall(cell)]
    assert len(quoted) > 15
    for message in quoted:
        for part in re.split(r"\.\.\.|\b(?:\d+|nan|N|resnet50)\b", message):
            assert part.strip(" ,") in code, message


def test_the_warnings_that_are_explained_are_those_there_are():
    cells = first_column("pretraining.md")
    assert [cell for cell in cells if cell in {concern.name for concern in CONCERNS}] == [c.name for c in CONCERNS]
    is_bad = {concern.name: concern.bad for concern in CONCERNS}  # the limits in the third column
    assert is_bad["collapse"](0.049, 1, 1) and is_bad["collapse"](1, 1, 0.09) and not is_bad["collapse"](0.06, 1, 0.11)
    for name, limit in (("one row", 0.5), ("starving bank", 0.9), ("loader", 0.3)):
        assert is_bad[name](limit + 0.01) and not is_bad[name](limit - 0.01)
    assert is_bad["falling kNN"](79, 100) and not is_bad["falling kNN"](81, 100)


# Planted mistakes are found


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


# What can be run is run: tests/docs/runs.py shortens it

LINES = {shlex.join(command.words): command for document in DOCUMENTS for command in commands(document)}
RUNS = [line for line in LINES if not_run_reason(line) is None]


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    """A generated dataset, and a run of one epoch with its conversion and its name in the zoo."""
    root = tmp_path_factory.mktemp("place")
    place = Place(root / "DATA", root / "run" / "checkpoint_00000007.pth", root / "backbone.pkl", root / "cache")
    make_sample(place.data, 0, 240, 1)
    (place.data / "detection").mkdir()
    for name in ("VOCdevkit/VOC2007", "VOCdevkit/VOC2012", "coco"):
        (place.data / "detection" / name.split("/")[-1]).symlink_to(place.data / name)
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
    """Pretrain, convert and classify in this process; also the tools that only print."""
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
