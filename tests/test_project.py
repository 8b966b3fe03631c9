"""Version, changelog, citation, workflow, contributors' page and pre-commit say the same as the README and the code."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

import adco
from tests import ROOT
from tests.docs.commands import FENCE
from tests.test_architecture import FLOORS

README = FENCE.search((ROOT / "README.md").read_text())[2].splitlines()  # the first commands: demo and tests
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def minor(version: str) -> str:
    """`0.17` of `0.17.6`."""
    return ".".join(version.split(".")[:2])


# Version


def test_the_version_has_one_source():
    assert re.fullmatch(r"\d+\.\d+\.\d+", adco.__version__)
    assert re.search(r"^dynamic = .*\"version\"", PYPROJECT, re.MULTILINE)
    assert 'attr = "adco.utils.version.__version__"' in PYPROJECT
    assert not re.search(r"^version = \"", PYPROJECT.split("[project]")[1].split("\n[")[0], re.MULTILINE)


def test_importing_adco_for_its_version_does_not_import_torch():
    code = "import adco, sys; assert adco.__version__; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_changelog_has_a_section_for_the_version_and_one_for_what_comes():
    titles = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[:2] == ["Unreleased", adco.__version__]


def test_the_changelogs_new_import_paths_exist():
    text = (ROOT / "CHANGELOG.md").read_text()
    (table,) = re.findall(r"### Import paths\n(.+?)\n### ", text, re.DOTALL)
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("| `")]
    names = [name for cell in cells for name in re.findall(r"`((?:adco|transfer)\.[\w.]+)`", cell)]
    assert len(names) > 25
    for name in names:
        assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), name


def test_the_citation_is_of_this_version_and_names_both_papers():
    citation = read_yaml("CITATION.cff")
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", adco.__version__)
    assert [paper["title"].partition(":")[0] for paper in citation["references"]] == ["AdCo", "CaCo"]
    for paper in citation["references"]:
        assert all(author.keys() == {"given-names", "family-names"} for author in paper["authors"])


# Commands


def test_the_workflow_runs_the_readmes_commands():
    job = read_yaml(".github/workflows/tests.yml")["jobs"]["tests"]
    steps = [step for step in job["steps"] if "run" in step]
    assert [step["run"] for step in steps if "if" not in step] == README
    assert README == ["pip install uv && uv run python tools/demo.py", "uv run pytest"]


def test_the_workflow_covers_both_ends_of_python_and_of_the_dependencies():
    job = read_yaml(".github/workflows/tests.yml")["jobs"]["tests"]
    runs = job["strategy"]["matrix"]["include"]
    low, high = re.search(r"requires-python = \">=([\d.]+),<([\d.]+)\"", PYPROJECT).groups()
    assert {run["python"] for run in runs} == {low, f"3.{int(high.split('.')[1]) - 1}"}
    resolutions = {run["dependencies"]: run["resolution"] for run in runs}
    assert resolutions == {"pinned": "highest", "oldest": "lowest-direct", "newest": "highest"}
    assert {"UV_PYTHON", "UV_RESOLUTION"} == job["env"].keys()


def test_the_workflow_lifts_the_pin_that_is_there():
    job = read_yaml(".github/workflows/tests.yml")["jobs"]["tests"]
    (step,) = [step for step in job["steps"] if "if" in step]
    if "constraint-dependencies" not in PYPROJECT:
        pytest.skip("the workflow has deleted the line in this checkout")
    pattern = re.fullmatch(r"sed -i '/(.+)/d' pyproject.toml", step["run"])[1]
    lifted = [line for line in PYPROJECT.splitlines() if re.search(pattern, line)]
    assert len(lifted) == 1 and "torch==" in lifted[0] and lifted[0].endswith("]")


def test_the_contributors_page_begins_with_the_readmes_commands():
    block = FENCE.search((ROOT / "CONTRIBUTING.md").read_text())[2].splitlines()
    assert block[:2] == README


def test_the_contributors_page_has_the_layers_that_are_tested():
    rows = re.findall(r"^\| \d \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert [tuple(re.findall(r"`(\w+)`", row)) for row in rows] == [floor for floor in FLOORS if floor != ("",)]


def readme_tree() -> dict[str, str]:
    """The README's tree: folder -> what stands beside it."""
    block = (ROOT / "README.md").read_text().split("## Where things are")[1].split("```")[1]
    parents, found = [], {}
    for indent, name, text in re.findall(r"^( *)(\w+)/ +(.+)$", block, re.MULTILINE):
        parents[len(indent) // 2 :] = [name]
        found["/".join(parents)] = text
    return found


def test_the_readmes_tree_has_every_package_and_only_files_that_exist():
    tree = readme_tree()
    folders = ("adco", "detection", "transfer")
    packages = {
        str(path.parent.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("__init__.py")
    }
    assert packages <= tree.keys()
    for folder, text in tree.items():
        assert (ROOT / folder).is_dir(), folder
        for name in re.findall(r"\b\w+\.(?:py|yaml)\b", text):
            assert (ROOT / folder / name).is_file() or f"tools/{name}" in text, f"{folder}: {name}"


@pytest.mark.parametrize(
    ("sought", "folder", "name"),
    [
        ("learning rate", "adco/utils", "schedules.py"),
        ("views", "adco/data/transforms", "parameters.py"),
        ("layout", "adco/weights", "layouts.py"),
        ("SVM", "transfer/svm", "protocols.py"),
        ("detector", "detection/configs", "YAML"),
    ],
)
def test_a_newcomer_finds_it_in_the_readmes_tree(sought, folder, name):
    text = readme_tree()[folder]
    assert sought in text and name in text


# Pre-commit


def test_pre_commit_formats_with_the_ruff_that_is_installed():
    (repo,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert {hook["id"] for hook in repo["hooks"]} == {"ruff-check", "ruff-format"}
    try:
        done = subprocess.run([sys.executable, "-m", "ruff", "--version"], capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError:
        pytest.skip("ruff is not installed")
    wanted = minor(repo["rev"].removeprefix("v"))
    assert minor(done.stdout.split()[1]) == wanted
    assert re.search(rf'"ruff>={re.escape(wanted)}(\.\d+)?,<', PYPROJECT), "the dev group: one minor version of ruff"
