"""Finds the commands of the documents and checks them.

A fenced block without a language (or `sh`) is shell; output is fenced as `text`. A code span that starts with a program
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

from adco.config.loading import RECIPES, load_recipe
from adco.utils.errors import UserError
from adco.weights.zoo import SCHEME, find
from tests import ROOT

PAGES = ("README.md", "MODEL_ZOO.md", "CONTRIBUTING.md", "CHANGELOG.md")
DOCUMENTS = (*(ROOT / page for page in PAGES), *sorted((ROOT / "docs").glob("*.md")))
FOLDERS = ("adco", "detection", "transfer", "tools", "tests", "docs", "benchmarks", "results")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
PROGRAMS = ("python ", "torchrun ", "uv ", "pip ", "sbatch ", "pytest ")
OTHER_PROGRAMS = ("export", "cd", "pytest", "ruff", "basedpyright", "pre-commit")  # their arguments are not checked
STOCK = "/path/to/detectron2/tools/train_net.py"  # takes what detection/train_net.py takes


class Wrong(Exception):
    """A command, name or link of a document is wrong."""


class Parsed(BaseException):
    """Carries a tool's parsed arguments out of it, before it does any work."""


@dataclass(frozen=True)
class Command:
    """One command line of a document.

    Attributes:
        document: The file.
        line: Number of the first line of its block or span, from 1.
        words: The command's words.
    """

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
    """Every example in a tool's docstring (`--help` prints it) and in the header of a recipe or a detector's config.

    Explanations may follow after three spaces; a line with `...` or brackets is a pattern and left out.
    """
    files = [file for folder in ("tools", "transfer", "detection") for file in sorted((ROOT / folder).glob("*.py"))]
    files += [*sorted(RECIPES.glob("*.yaml")), *sorted((ROOT / "detection" / "configs").glob("*.yaml"))]
    for file in files:
        text = re.sub(r"\\+\n#? *", "", file.read_text())
        for line in re.findall(r"^(?:# [Cc]ommand:)? *((?:python|torchrun) .*)$", text, re.MULTILINE):
            if not re.search(r"\.\.\.|\[", line):
                yield from (Command(file, 1, words) for words in words_of(line.split("   ")[0]))


def words_of(block: str) -> Iterator[tuple[str, ...]]:
    """The commands of a shell block, without comments, with continued lines joined and `&&` split."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            if words[:end]:
                yield tuple(words[:end])
            words = words[end + 1 :]


def check(words: tuple[str, ...]) -> None:
    """Raise Wrong if a command names a program, file, flag, recipe, key, config, protocol or model that does not exist.

    A flag must be written out: an abbreviation fails as soon as another flag starts like it.
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

        args = quietly(get_args_parser().parse_args, rest)
        check_script(args.training_script, args.training_script_args)
    elif program == "sbatch":
        need_file(rest[0])
        check_script("tools/train_adco.py", rest[1:])
    elif program == "pip":
        if rest[:1] != ["install"]:
            raise Wrong(f"pip {rest[:1]}: expected install")
    elif program not in OTHER_PROGRAMS:
        raise Wrong(f"{program}: not a program that the documents use")


def check_python(rest: list[str]) -> None:
    """Check what follows `python`: a script, or a module after -m."""
    if rest[:1] == ["-m"]:
        if importlib.util.find_spec(rest[1]) is None:
            raise Wrong(f"python -m {rest[1]}: no such module")
    elif rest[:1] != ["-c"]:
        check_script(rest[0], rest[1:])


def check_script(script: str, argv: list[str]) -> None:
    """Check a script's arguments with its own parser, and the names in them."""
    script = "detection/train_net.py" if script == STOCK else script
    need_file(script)
    for word in argv:
        if word.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
            need_file(word)
        if SCHEME.match(word):
            wrong_if_refused(find, word)
    if not re.search(r"parse_(intermixed_)?args\(", (ROOT / script).read_text()):
        return
    args = parsed(importlib.import_module(script.removesuffix(".py").replace("/", ".")).main, argv)
    if args is not None and script in MORE:
        wrong_if_refused(MORE[script], args)


def parsed(main: Callable, argv: list[str]) -> argparse.Namespace | None:
    """The arguments as a tool's own parser returns them, without running the tool; None for --help."""
    kept = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_intermixed_args

    def stopping(parse: Callable) -> Callable:
        def parse_and_stop(self, args=None, namespace=None):
            self.allow_abbrev = False
            raise Parsed(parse(self, args, namespace))

        return parse_and_stop

    argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_intermixed_args = map(stopping, kept)
    try:
        quietly(main, argv)
    except Parsed as carrier:
        return carrier.args[0]
    finally:
        argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_intermixed_args = kept
    return None


def quietly(call: Callable, argv: list[str]) -> object:
    """The call's result. Raises Wrong with the last line of stderr if the exit code is not 0."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            result = call(argv)
        except SystemExit as stopped:
            result = stopped.code
    if result and isinstance(result, int):
        raise Wrong(errors.getvalue().strip().splitlines()[-1])
    return result


def wrong_if_refused(call: Callable, *arguments: object) -> None:
    """Call, and turn a UserError into Wrong."""
    try:
        call(*arguments)
    except UserError as error:
        raise Wrong(str(error)) from error


def need_file(path: str) -> None:
    """Raise Wrong if the project does not have the file."""
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
    protocols = importlib.import_module("transfer.classifier.protocols")
    _protocols({*getattr(protocols, which)}, args)


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


def flat(span: str) -> str:
    """A code span on one line."""
    return " ".join(span.split())
