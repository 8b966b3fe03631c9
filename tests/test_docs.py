"""Nothing in the documents that is not so: every command parses, every name exists; what can be run is run."""

from __future__ import annotations

import pytest

from tests import doc_commands
from tests.doc_commands import DOCUMENTS, ROOT, Wrong, check, check_names, commands, words_of


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


# The test of the test


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python tools/train_adco.py --config-file adco_r50_200ep --output out", "arguments: --output"),
        ("python tools/train_adco.py --config-file adco_r50_20ep", "adco_r50_20ep: no such recipe"),
        ("python tools/train_adco.py --config-file adco_r50_200ep optimiser.lr=1", "did you mean optimizer"),
        ("python tools/train_adco.py --config-file adco_r50_200ep batch=1", "batch=1 is out of range"),
        ("torchrun --nproc_per_gpu 8 tools/train_adco.py --config-file adco_r50_200ep", "required|unrecognized|nproc"),
        ("torchrun --nproc-per-node 8 tools/train_adco.py --config-file adco_r50_200ep --seeds 1", "--seeds 1"),
        ("python tools/train.py", "tools/train.py: no such file"),
        ("python -m adco.train", "no such module"),
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
    assert doc_commands.FENCE.search(readme)[2].splitlines() == [
        "pip install uv && uv run python tools/demo.py",
        "uv run pytest",
    ]
