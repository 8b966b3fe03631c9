"""Pretrain a ResNet without labels from a recipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adco.config.loading import RECIPES, load_recipe
from adco.train.failures import explained
from adco.train.trainer import Trainer
from adco.utils import distributed
from adco.utils.device import resolve_device
from adco.utils.errors import command

EXAMPLES = """\
examples:
  # AdCo as published, on ImageNet
  python tools/train_adco.py --config-file adco/recipes/adco_r50_200ep.yaml data.root=IMAGENET --output-dir output/adco
  # after an interruption: the same command with --resume
  # on 8 GPUs of one machine (docs/clusters.md: several machines, SLURM)
  torchrun --nproc-per-node 8 tools/train_adco.py --config-file adco_r50_200ep data.root=IMAGENET --output-dir out
  # a small run on your own images: FOLDER/train/CLASS/*.jpg, or any folder of images
  python tools/train_adco.py --config-file adco_r18_imagenette data.root=FOLDER epochs=50 --output-dir output/mine

In the output folder: recipe.yaml (resolved), checkpoint_STEP.pth with its sha256, metrics.jsonl, tensorboard/,
bad_images.txt if some could not be read, and record.json at the end.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Train to the end of the recipe, and print the last checkpoint."""
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="RECIPE", help=f"a YAML file, or the name of one of ours: {names}"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("output"),
        help="where checkpoints and metrics go (default: %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume from the newest intact checkpoint in the output folder"
    )
    parser.add_argument(
        "--force-recipe-change", action="store_true", help="with --resume: continue although the recipe or data changed"
    )
    parser.add_argument(
        "--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:INDEX (default: the recipe's, auto)"
    )
    parser.add_argument("--seed", type=int, help="overrides the recipe's seed")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="overrides of the recipe, e.g. optimizer.lr=0.06"
    )
    args = parser.parse_intermixed_args(argv)
    extra = [f"{key}={value}" for key in ("device", "seed") if (value := getattr(args, key)) is not None]
    recipe = load_recipe(args.config_file, [*args.overrides, *extra])
    with (
        distributed.started(resolve_device(recipe.device)) as device,
        explained(recipe, distributed.world_size(), args.output_dir),
    ):
        resume = args.resume or distributed.restarted()
        path = Trainer(recipe, args.output_dir, device, resume, args.force_recipe_change).fit()
        if distributed.rank() == 0:
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
