"""What the documents tell people to type, and whether it can be true: commands, names and links, found and checked.

A fenced block without a language (or `sh`) is shell; output is fenced as `text`. A code span that begins with a program
is a command too. Words in capitals stand for the reader's own files.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import io
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adco.config.loading import RECIPES, _all_keys, load_recipe
from adco.utils.errors import UserError
from adco.weights.zoo import SCHEME, find
from tests import ROOT

DOCUMENTS = (ROOT / "README.md", ROOT / "MODEL_ZOO.md", *sorted((ROOT / "docs").glob("*.md")))
ROOMS = ("adco", "detection", "transfer", "tools", "tests", "docs", "benchmarks", "results")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PROGRAMS = ("python ", "torchrun ", "uv ", "pip ", "sbatch ", "pytest ")
METHODS = "adco|caco|moco|mochi|simclr|byol|simsiam|swav"
STOCK = "/path/to/detectron2/tools/train_net.py"  # takes what detection/train_net.py takes


class Wrong(Exception):
    """What a document says is not so."""


class Parsed(BaseException):
    """Carries a tool's parsed arguments out of it, before it does any work."""


@dataclass(frozen=True)
class Command:
    """One command line of a document. line: of the block or span that it is in, from 1."""

    document: Path
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}: {shlex.join(self.words)}"


def commands(document: Path) -> Iterator[Command]:
    """Every command of a document, blocks first."""
    text = document.read_text()
    for block in FENCE.finditer(text):
        if block[1] in ("", "sh"):
            line = text.count("\n", 0, block.start()) + 1
            yield from (Command(document, line, words) for words in words_of(block[2]))
    prose = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    for span in SPAN.finditer(prose):
        if flat(span[1]).startswith(PROGRAMS):
            line = prose.count("\n", 0, span.start()) + 1
            yield from (Command(document, line, words) for words in words_of(flat(span[1])))


def commands_in_help() -> Iterator[Command]:
    """Every example in the text of a tool (`--help` prints it), and in the header of a recipe or a detector's config.

    Explanations may follow after three spaces; a line with `...` or brackets is a sketch.
    """
    files = [file for room in ("tools", "transfer", "detection") for file in sorted((ROOT / room).glob("*.py"))]
    files += [*sorted(RECIPES.glob("*.yaml")), *sorted((ROOT / "detection" / "configs").glob("*.yaml"))]
    for file in files:
        text = re.sub(r"\\+\n#? *", "", file.read_text())
        for line in re.findall(r"^(?:# [Cc]ommand:)? *((?:python|torchrun) .*)$", text, re.MULTILINE):
            if not re.search(r"\.\.\.|\[", line):
                yield from (Command(file, 1, words) for words in words_of(line.split("   ")[0]))


def words_of(block: str) -> Iterator[tuple[str, ...]]:
    """The commands of a shell block: comments left out, continued lines joined, `&&` split."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            if words[:end]:
                yield tuple(words[:end])
            words = words[end + 1 :]


def check(words: tuple[str, ...]) -> None:
    """Raise Wrong where a command cannot work: no such program, file, flag, recipe, key, config, protocol or model.

    A flag must be written out: an abbreviation is wrong as soon as another flag begins like it.
    """
    while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
        words = words[1:]
    program, rest = words[0], list(words[1:])
    if program == "uv":
        if rest[:1] == ["run"] and rest[1:] not in ([], ["..."]):
            check(tuple(rest[1:]))
        elif rest[:1] not in (["run"], ["sync"], ["tool"]):
            raise Wrong(f"uv {rest[:1]}: expected run, sync or tool")
    elif program == "python":
        check_python(rest)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        found = quietly(get_args_parser().parse_args, rest)
        check_script(found.training_script, found.training_script_args)
    elif program == "sbatch":
        need_file(rest[0])
        check_script("tools/train_adco.py", rest[1:])
    elif program == "pip":
        if rest[:1] != ["install"]:
            raise Wrong(f"pip {rest[:1]}: expected install")
    elif program not in ("export", "cd", "pytest"):
        raise Wrong(f"{program}: not a program that the documents use")


def check_python(rest: list[str]) -> None:
    if rest[:1] == ["-m"]:
        if importlib.util.find_spec(rest[1]) is None:
            raise Wrong(f"python -m {rest[1]}: no such module")
    elif rest[:1] != ["-c"]:
        check_script(rest[0], rest[1:])


def check_script(script: str, argv: list[str]) -> None:
    script = "detection/train_net.py" if script == STOCK else script
    need_file(script)
    for word in argv:
        if word.startswith(tuple(f"{room}/" for room in ROOMS)):
            need_file(word)
        if SCHEME.match(word):
            reported(find, word)
    if not re.search(r"parse_(intermixed_)?args\(", (ROOT / script).read_text()):
        return
    args = parsed(importlib.import_module(script.removesuffix(".py").replace("/", ".")).main, argv)
    if args is not None and script in MORE:
        reported(MORE[script], args)


def parsed(main: Callable, argv: list[str]) -> argparse.Namespace | None:
    """What a tool's own parser makes of the arguments, and nothing of what the tool would do then; None for --help."""
    kept = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_intermixed_args

    def stopping(parse: Callable) -> Callable:
        def parse_and_stop(self, args=None, namespace=None):
            self.allow_abbrev = False
            raise Parsed(parse(self, args, namespace))

        return parse_and_stop

    argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_intermixed_args = map(stopping, kept)
    try:
        quietly(main, argv)
    except Parsed as found:
        return found.args[0]
    finally:
        argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_intermixed_args = kept
    return None


def quietly(call: Callable, argv: list[str]) -> object:
    """The call's result; Wrong with its complaint where it ends with an exit code other than 0."""
    complaint = io.StringIO()
    with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
        try:
            result = call(argv)
        except SystemExit as stopped:
            result = stopped.code
    if result and isinstance(result, int):
        raise Wrong(complaint.getvalue().strip().splitlines()[-1])
    return result


def reported(ask: Callable, *arguments: object) -> None:
    """Call, and let a UserError be a Wrong."""
    try:
        ask(*arguments)
    except UserError as error:
        raise Wrong(str(error)) from error


def need_file(path: str) -> None:
    if not (ROOT / path).exists():
        raise Wrong(f"{path}: no such file in the project")


def _detection(args: argparse.Namespace) -> None:
    import detection  # noqa: F401
    from detection.config import load_config

    load_config(str(ROOT / args.config_file), args.opts)


def _submitted(args: argparse.Namespace) -> None:
    check_script("tools/train_adco.py", [word for word in args.training if word != "--"])


def _protocols(names: set[str], args: argparse.Namespace) -> None:
    for name in args.protocol or ():
        if name not in names | {"list"}:
            raise UserError(f"--protocol {name}: not one of {', '.join(sorted(names))}")


def _voc07(args: argparse.Namespace) -> None:
    from transfer.svm.protocols import PROTOCOLS

    _protocols({*PROTOCOLS, "adco", "all"}, args)


def _trained(args: argparse.Namespace, which: str) -> None:
    recipes = importlib.import_module("transfer.classifier.protocols")
    _protocols({*getattr(recipes, which)}, args)


def _zoo(args: argparse.Namespace) -> None:
    if args.run.__name__ == "run_pack":
        load_recipe(args.recipe)
    elif args.run.__name__ != "run_add":
        for name in getattr(args, "names", None) or [getattr(args, "name", None)]:
            if name not in (None, "NAME"):
                find(name)


MORE = {
    "tools/train_adco.py": lambda args: load_recipe(args.config_file, args.overrides),
    "tools/submit.py": _submitted,
    "tools/zoo.py": _zoo,
    "detection/train_net.py": _detection,
    "transfer/voc07.py": _voc07,
    "transfer/places205.py": functools.partial(_trained, which="PLACES205"),
    "transfer/imagenet.py": functools.partial(_trained, which="IMAGENET"),
}


def check_names(text: str, folder: Path) -> None:
    """Raise Wrong for a link, path, recipe, recipe key or environment variable that a text names and nothing has."""
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
        if not any(name in file.read_text() for room in ROOMS for file in py(room)):
            raise Wrong(f"{name}: no code reads this variable")


def check_span(span: str) -> None:
    """A code span that looks like a file of the project, or like a key of a recipe, must be one."""
    if re.fullmatch(rf"(?:{'|'.join(ROOMS)})/[\w./*{{}},-]+", span) and not re.search(r"\b[A-Z]+\b", span):
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


def flat(span: str) -> str:
    """A code span that was wrapped, on one line."""
    return " ".join(span.split())


@functools.cache
def py(room: str) -> tuple[Path, ...]:
    """The Python files of a room."""
    return tuple((ROOT / room).rglob("*.py"))
