"""The model zoo: public checkpoints by name, downloaded once and always verified. docs/zoo.md describes it.

Wherever a tool takes a checkpoint it takes zoo://NAME, too. The files are in the folder `zoo` of $ADCO_CACHE.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adco.utils.download import RetryPolicy
from adco.utils.errors import UserError, command
from adco.weights.additions import add_file, add_model
from adco.weights.manifest import Model
from adco.weights.zoo import download, find, models, read_record, verify

EXAMPLES = """\
examples:
  python tools/zoo.py download moco-v2-r50-800ep
  python tools/zoo.py verify                                    all that are in the cache
  python tools/zoo.py add adco-r50-200ep ~/Downloads/model.pth.tar   a file that came by other means
  python tools/zoo.py add mine output/adco/checkpoint.pth --method AdCo --epochs 100     one of your own
  python tools/zoo.py pack output/adco/checkpoint.pth mine.safetensors --recipe adco_r18_imagenette \
      --data Imagenette     half the size, for a package: prints the row for its manifest
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand."""
    args = _parser().parse_args(argv)
    return args.run(args)


def show_list(args: argparse.Namespace) -> None:
    """Print a table of all models."""
    rows = [("name", "method", "epochs", "arch", "licence", "checksum", "here")]
    for model in models().values():
        here = "yes" if model.path.is_file() else ""
        licence = (model.licence or "?").split(" (")[0]
        rows.append(
            (model.name, model.method or "?", str(model.epochs or "?"), model.arch or "?", licence, _known(model), here)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show_model(args: argparse.Namespace) -> None:
    """Print the manifest's entry of one model."""
    model = find(args.name)
    row = {
        key: value for key, value in vars(model).items() if value not in (None, ()) and key not in ("name", "folder")
    }
    if model.mirrors:
        row["mirrors"] = list(model.mirrors)
    row["scores"] = [dict(score) for score in model.scores]
    if recorded := read_record(model):
        row["recorded"] = recorded
    row["path"] = f"{model.path}" + ("" if model.path.is_file() else " (not there)")
    print(yaml.safe_dump({model.name: row}, sort_keys=False, width=120), end="")
    scores = "measured by us: MODEL_ZOO.md" if model.file and model.recipe else "its owner's, not measured here"
    print(f"# checksum: {_known(model)}; scores are {scores}")


def run_download(args: argparse.Namespace) -> None:
    """Download models into the cache."""
    for name in args.names:
        model = find(name)
        path = download(model, args.offline, RetryPolicy(timeout_seconds=args.timeout))
        print(f"{model.name}: {path} ({_known(model)})")


def run_verify(args: argparse.Namespace) -> None:
    """Compare files in the cache with their checksums. Raises UserError when one is damaged."""
    chosen = [find(name) for name in args.names] or [model for model in models().values() if model.path.is_file()]
    faults = []
    for model in chosen:
        try:
            print(f"{model.name}: whole, sha256 {verify(model)} ({_known(model)})")
        except UserError as error:
            faults.append(model.name)
            print(f"{model.name}: {error}")
    if faults:
        raise UserError(f"not whole: {', '.join(faults)}")
    print(f"{len(chosen)} verified")


def run_add(args: argparse.Namespace) -> None:
    """Add a file to a model of the zoo, or a new model."""
    keys = {key: getattr(args, key) for key in ("method", "epochs", "licence", "sha256", "note")}
    if args.name in models():
        if given := [f"--{key}" for key, value in keys.items() if value is not None]:
            raise UserError(f"{args.name} is in the zoo already; {', '.join(given)} cannot be changed")
        model = find(args.name)
        add_file(model, Path(args.source))
    else:
        model = add_model(args.name, args.source, **keys)
    print(f"zoo://{model.name}: {model.path}" + ("" if model.path.is_file() else " (not downloaded yet)"))


def run_pack(args: argparse.Namespace) -> None:
    """Write a checkpoint as float16 weights, and print its row for a manifest."""
    from adco.weights.export import BOUND, pack  # torch: only here

    packed = pack(args.checkpoint, args.out, args.recipe, args.data, args.licence)
    name = args.out.stem.replace("_", "-")
    print(yaml.safe_dump({name: packed.row}, sort_keys=False, width=120), end="")
    print(f"# wrote {args.out}; its features differ by at most {packed.difference:.1e} (allowed: {BOUND:.0e})")


def _known(model: Model) -> str:
    """What is known of a model's checksum, in a few words."""
    if model.sha256:
        return "sha256 published" if model.mirrors else "sha256 in the manifest"
    known = [f"{model.hash_prefix.split(':')[0]} prefix published"] if model.hash_prefix else []
    known += ["recorded at first download"] if read_record(model) else []
    return ", ".join(known) or "none published"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="list|show|download|verify|add|pack")
    verbs.add_parser("list", help="every model on a line").set_defaults(run=show_list)
    verb = verbs.add_parser("show", help="everything known of one: addresses, licence, the scores its owner publishes")
    verb.add_argument("name")
    verb.set_defaults(run=show_model)
    verb = verbs.add_parser("download", help="into the cache; resumes an interrupted download")
    verb.add_argument("names", nargs="+", metavar="NAME")
    verb.add_argument("--offline", action="store_true", help="only what is in the cache (also: ADCO_OFFLINE=1)")
    verb.add_argument("--timeout", type=float, default=30, help="seconds of silence (default: %(default)s)")
    verb.set_defaults(run=run_download)
    verb = verbs.add_parser("verify", help="compare files in the cache with their checksums")
    verb.add_argument("names", nargs="*", metavar="NAME")
    verb.set_defaults(run=run_verify)
    verb = verbs.add_parser("add", help="a file that came by other means, or a model of your own")
    verb.add_argument("name", help="of the zoo, or a new one")
    verb.add_argument("source", metavar="FILE_OR_URL")
    for key in ("method", "licence", "sha256", "note"):
        verb.add_argument(f"--{key}", help="of a new model")
    verb.add_argument("--epochs", type=int, help="of a new model")
    verb.set_defaults(run=run_add)
    verb = verbs.add_parser("pack", help="a checkpoint of ours as float16 for a package, and the row for its manifest")
    verb.add_argument("checkpoint", type=Path, help="the last one of a run that has ended; record.json lies beside it")
    verb.add_argument("out", type=Path, metavar="OUT.safetensors")
    verb.add_argument("--recipe", required=True, help="the name of the recipe that it was trained by")
    verb.add_argument("--data", required=True, metavar="WORDS", help="what it was trained on")
    verb.add_argument("--licence", default="MIT", help="of the weights (default: %(default)s)")
    verb.set_defaults(run=run_pack)
    return parser


if __name__ == "__main__":
    sys.exit(main())
