"""Checks the names of the documents: links, paths, recipes, recipe keys, environment variables."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from adco.config.loading import RECIPES, _all_keys
from tests import ROOT
from tests.docs.commands import FENCE, FOLDERS, SPAN, Wrong, flat

LINK = re.compile(r"\]\(([^)\s]+)\)")
METHODS = "adco|caco|moco|mochi|simclr|byol|simsiam|swav"


def check_names(text: str, folder: Path) -> None:
    """Raise Wrong if a text names a link, path, recipe, recipe key or environment variable that does not exist."""
    for target in LINK.findall(FENCE.sub("", text)):
        path, _, anchor = target.partition("#")
        if not re.match(r"\w+:", target):
            if path and not (folder / path).exists():
                raise Wrong(f"link to {path}: no such file")
            if anchor and anchor not in anchors((folder / path).read_text() if path else text):
                raise Wrong(f"link to {target}: no such heading")
    for span in map(flat, SPAN.findall(FENCE.sub("", text))):
        check_span(span)
    for recipe in re.findall(rf"\b(?:{METHODS})_r\d+_\w+", text):
        if not (RECIPES / f"{recipe}.yaml").is_file() and not list((ROOT / "results").glob(f"{recipe}*")):
            raise Wrong(f"{recipe}: no such recipe")
    for name in set(re.findall(r"\bADCO_[A-Z_]+", text)):
        if not any(name in file.read_text() for top in FOLDERS for file in python_files(top)):
            raise Wrong(f"{name}: no code reads this variable")


def check_span(span: str) -> None:
    """Raise Wrong if a code span looks like a file of the project or a recipe key and is none."""
    if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./*{{}},-]+", span) and not re.search(r"\b[A-Z]+\b", span):
        for pattern in braced(span.rstrip("/")):
            config = pattern.replace("detection/", "detection/configs/", 1)  # `detection/NAME` is a protocol by config
            if not list(ROOT.glob(pattern)) and not list(ROOT.glob(f"{config}*.yaml")):
                raise Wrong(f"`{span}`: no such file in the project")
    key = re.fullmatch(r"((?:views\.\d|[a-z]+)\.[a-z_]+)(?:=\S+)?", span)
    sections = {name.split(".")[0] for name in _all_keys() if "." in name}
    if key and key[1].split(".")[0] in sections and re.sub(r"\.\d+\.", ".0.", key[1]) not in _all_keys():
        raise Wrong(f"`{span}`: no such key in a recipe")


def braced(pattern: str) -> list[str]:
    """`a{b,c}` -> `ab`, `ac`."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    return [p for part in match[1].split(",") for p in braced(pattern[: match.start()] + part + pattern[match.end() :])]


def anchors(text: str) -> set[str]:
    """The headings' anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@functools.cache
def python_files(folder: str) -> tuple[Path, ...]:
    """The Python files below a folder of the project."""
    return tuple((ROOT / folder).rglob("*.py"))
