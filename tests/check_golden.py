"""Compare one step of our code with what the released AdCo and CaCo update functions produce.

    uv run python tests/check_golden.py DIR

checks every METHOD_MODE_ranksR_caseC.npz in DIR in float64, prints each file's worst difference, and exits with 1 when
one is off by more than 1e-10, when its mode is not supported, or when DIR holds none. Format: tests/golden/README.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adco.bank import Bank
from adco.contrast import Contrast, adversarial_contrast, make_pairs

TOLERANCE = 1e-10
NAME = re.compile(r"(?P<method>\w+?)_(?P<mode>\w+?)_ranks(?P<ranks>\d+)_case\d+\.npz")


class Unsupported(Exception):
    """A golden file whose method, mode or number of ranks this code does not compute."""


def differences(path: Path) -> dict[str, float]:
    """Array name -> worst absolute difference between the golden file and our step, in float64."""
    name = NAME.fullmatch(path.name)
    if name is None:
        raise Unsupported("not named METHOD_MODE_ranksR_caseC.npz")
    evaluate = MODES.get((name["method"], name["mode"]))
    if evaluate is None:
        raise Unsupported(f"method {name['method']}, mode {name['mode']}")
    if name["ranks"] != "1":
        raise Unsupported(f"{name['ranks']} ranks")
    with np.load(path) as file:
        golden = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    return _step(golden, evaluate)


def _step(golden: dict[str, torch.Tensor], evaluate: Callable[..., Contrast]) -> dict[str, float]:
    queries = golden["queries"][:, 0].clone().requires_grad_()
    bank = Bank(
        *golden["bank"].shape, float(golden["bank_sgd_momentum"]), float(golden["bank_weight_decay"]), renormalize=False
    ).double()
    bank.rows.copy_(golden["bank"])
    bank.velocity.copy_(golden["momentum"])
    result = evaluate(
        F.normalize(queries, dim=-1), F.normalize(golden["keys"][:, 0], dim=-1), bank.rows,
        float(golden["tau"]), float(golden["tau_bank"]),
    )  # fmt: skip
    result.loss.backward()
    bank.ascend(result.direction, float(golden["bank_lr"]))
    ours = {
        "cross_entropies": result.cross_entropies,
        "query_grads": queries.grad,
        "bank_after": bank.rows,
        "momentum_after": bank.velocity,
    }
    theirs = golden | {"cross_entropies": golden["cross_entropies"][0], "query_grads": golden["query_grads"][:, 0]}
    return {key: (value - theirs[key]).abs().max().item() for key, value in ours.items()}


def _adco(queries: torch.Tensor, keys: torch.Tensor, bank: torch.Tensor, tau: float, tau_bank: float) -> Contrast:
    symmetric = len(keys) == 2
    pairs = make_pairs(2 if symmetric else len(queries) + 1, symmetric)
    key_views = (0, 1) if symmetric else (len(queries),)
    return adversarial_contrast(
        dict(enumerate(queries)),
        dict(zip(key_views, keys, strict=True)),
        pairs,
        bank,
        tau,
        tau_bank,
        in_batch_negatives=True,
    )


MODES = {("adco", "asym"): _adco, ("adco", "sym"): _adco, ("adco", "multi"): _adco}


def main(argv: list[str]) -> int:
    """Check every file of the folder in `argv`; the exit code."""
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        print("usage: check_golden.py DIR, a folder of METHOD_MODE_ranksR_caseC.npz files", file=sys.stderr)
        return 2
    files = sorted(Path(argv[0]).glob("*.npz"))
    failed = not files
    for path in files:
        try:
            found = differences(path)
        except Unsupported as reason:
            print(f"{path.name:<32} NOT SUPPORTED: {reason}")
            failed = True
            continue
        key, worst = max(found.items(), key=lambda item: (item[1] != item[1], item[1]))  # NaN is the worst
        good = worst <= TOLERANCE
        print(f"{path.name:<32} worst difference {worst:.1e} ({key}) {'ok' if good else 'OFF'}")
        failed |= not good
    print(f"{len(files)} files, {'FAILED' if failed else 'all within'} {'' if failed else f'{TOLERANCE:g}'}".rstrip())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
