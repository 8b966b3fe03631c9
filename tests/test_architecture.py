"""The floors of the project: imports go down only, between its rooms and between the packages of adco/; no circles."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests import ROOT

ROOMS = ("adco", "detection", "transfer", "tools", "benchmarks")
ALLOWED = {
    "adco": {"adco"},
    "detection": {"adco", "detection"},
    "transfer": {"adco", "transfer"},
    "tools": {"adco", "detection", "transfer"},  # nobody imports a tool, not even another tool
    "benchmarks": set(ROOMS),
}
FLOORS = (  # the packages of adco/, from the lowest floor up; a package imports none of its own floor but itself
    ("utils",),
    ("config", "losses", "evaluation", "launch", "sample"),
    ("models", "data"),
    ("weights", "methods"),
    ("train",),
    ("suite", "report"),
    ("",),  # adco/__init__.py, the public API
)
FLOOR_OF = {package: number for number, floor in enumerate(FLOORS) for package in floor}


def modules_of(root: Path) -> dict[str, Path]:
    """Every module of the rooms below `root`: dotted name -> file."""
    files = [path for room in ROOMS for path in sorted((root / room).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """The project's modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the package"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(name if name in modules else node.module for name in names)
    return found & set(modules)


def import_graph(root: Path) -> dict[str, set[str]]:
    """Every module of the rooms below `root` and what it imports of them."""
    modules = modules_of(root)
    return {name: imports_of(path, modules) - {name} for name, path in modules.items()}


def package_of(module: str) -> str:
    """`data` for adco.data.images, empty for adco itself."""
    return module.split(".")[1] if "." in module else ""


def imports_that_go_up(graph: dict[str, set[str]]) -> list[str]:
    """Imports that the floors do not allow, as `importer -> imported`."""
    astray = []
    for name, imported in graph.items():
        for other in sorted(imported):
            rooms = name.split(".")[0], other.split(".")[0]
            up = rooms[1] not in ALLOWED[rooms[0]]
            if rooms == ("adco", "adco") and package_of(name) != package_of(other):
                up = FLOOR_OF[package_of(name)] <= FLOOR_OF[package_of(other)]
            if up:
                astray.append(f"{name} -> {other}")
    return astray


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, empty where there is none. What only a type checker reads is no import."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return import_graph(ROOT)


def test_imports_go_down_only(graph):
    assert len(graph) > 150
    assert not imports_that_go_up(graph)


def test_there_are_no_circles(graph):
    assert not circle(graph)


def test_nothing_of_the_rooms_knows_the_drawn_sample_but_its_tool(graph):
    drawn = {name for name in graph if package_of(name) == "sample"}
    users = {name for name, imported in graph.items() if imported & drawn} - drawn
    assert {name for name in users if not name.startswith("benchmarks.")} == {"tools.make_sample"}


def test_every_package_of_adco_has_a_floor():
    packages = {path.parent.name for path in (ROOT / "adco").glob("*/__init__.py")}
    assert packages == set(FLOOR_OF) - {""}
    assert [path.name for path in (ROOT / "adco").glob("*.py")] == ["__init__.py"]  # no flat files


@pytest.mark.parametrize(
    ("file", "line", "astray"),
    [
        ("adco/utils/errors.py", "from adco.data import images", ["adco.utils.errors -> adco.data.images"]),
        ("adco/data/images.py", "def f():\n    import adco.train.trainer", ["adco.data.images -> adco.train.trainer"]),
        ("adco/models/resnet.py", "from adco.data.images import x", ["adco.models.resnet -> adco.data.images"]),
        ("adco/train/trainer.py", "import transfer.knn", ["adco.train.trainer -> transfer.knn"]),
        ("transfer/knn.py", "from tools import zoo", ["transfer.knn -> tools.zoo"]),
        ("adco/train/trainer.py", "from adco.data.images import x", []),
    ],
)
def test_a_planted_import_that_goes_up_is_found(tmp_path, file, line, astray):
    for name in ("utils/errors", "data/images", "models/resnet", "train/trainer"):
        path = tmp_path / "adco" / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.touch()
    for name in ("transfer/knn.py", "tools/zoo.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / file).write_text(line)
    assert imports_that_go_up(import_graph(tmp_path)) == astray


def test_a_planted_circle_is_found(tmp_path):
    (tmp_path / "adco").mkdir()
    for name, imported in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
        (tmp_path / "adco" / f"{name}.py").write_text(f"def f():\n    from adco.{imported} import x\n")
    assert set(circle(import_graph(tmp_path))) == {"adco.a", "adco.b", "adco.c"}


def test_only_detection_knows_detectron2_and_only_one_file_names_torch_distributed():
    for room in ("adco", "transfer", "tools"):
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            assert not re.search(r"^\s*(import|from) detectron2", text, re.MULTILINE), path
            assert path.name == "distributed.py" or "torch.distributed" not in text, path


def test_importing_adco_and_transfer_needs_no_detectron2():
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "import adco.train.trainer, adco.weights.backbone, transfer.voc07, transfer.knn, transfer.linear"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_tests_lie_as_the_code_does():
    """At least 80% of the test files have the path of the module or package that they test."""
    files = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")]
    files = [path for path in files if path.parts[0] not in ("cuda", "faults", "golden")]
    mirrored = []
    for path in files:
        name = path.stem.removeprefix("test_")
        here = ROOT / path.parent
        mirrored.append((here / f"{name}.py").is_file() or (here.name == name and here.is_dir()))
    assert sum(mirrored) / len(files) >= 0.8


def test_files_have_at_most_300_lines_and_functions_at_most_60():
    for path in modules_of(ROOT).values():
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
