"""Compare one step of our code with what the released AdCo and CaCo update functions produce.

    uv run python tests/check_golden.py DIR

checks every METHOD_MODE_ranksR_caseC.npz in DIR in float64, prints each file's worst difference, and exits with 1 when
one is off by more than 1e-10, when its mode is not known, or when DIR holds none. A file of two ranks is checked on two
processes that this script starts. Format: tests/golden/README.md.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adco.config.schema import BankConfig as Options
from adco.losses.adco import adversarial_contrast
from adco.losses.bank_softmax import LossOutput
from adco.losses.caco import cooperative_contrast
from adco.losses.pairs import Pair, make_caco_pairs, make_pairs
from adco.models.memory_bank import MemoryBank
from adco.utils import distributed
from tests.ranks import run_ranks

TOLERANCE = 1e-10
NAME = re.compile(r"(?P<method>\w+?)_(?P<mode>\w+?)_ranks(?P<ranks>\d+)_case\d+\.npz")


class Unsupported(Exception):
    """A golden file whose method or mode this code does not compute."""


def differences(path: Path) -> dict[str, float]:
    """Array name -> worst absolute difference between the golden file and our step on as many ranks, in float64."""
    name = NAME.fullmatch(path.name)
    if name is None or (name["method"], name["mode"]) not in MODES:
        raise Unsupported("not a METHOD_MODE_ranksR_caseC.npz of adco or caco")
    with np.load(path) as file:
        golden = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    ranks = int(name["ranks"])
    arguments = golden, name["method"], name["mode"]
    found = [_step(*arguments)] if ranks == 1 else run_ranks(_step, ranks, *arguments)
    return _worst(found)


def _step(golden: dict[str, torch.Tensor], method: str, mode: str) -> dict[str, float]:
    """One step on this rank, both with the whole bank on every rank and with its part of a sharded one."""
    placements = ("replicated", "sharded") if distributed.world_size() > 1 else ("replicated",)
    return _worst([_one_step(golden, method, mode, placement) for placement in placements])


def _worst(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.max([one[key] for one in found])) for key in found[0]}  # NaN is the worst


def _one_step(golden: dict[str, torch.Tensor], method: str, mode: str, placement: str) -> dict[str, float]:
    rank = distributed.rank()
    size, dim = golden["bank"].shape
    momentum, decay = float(golden["bank_sgd_momentum"]), float(golden["bank_weight_decay"])
    options = Options(size, sgd_momentum=momentum, weight_decay=decay, placement=placement)
    bank = MemoryBank(options, dim).double()
    bank.load_state_dict({"rows": golden["bank"], "velocity": golden["momentum"]})
    queries = golden["queries"][:, rank].clone().requires_grad_()
    result = MODES[method, mode](
        F.normalize(queries, dim=-1), F.normalize(golden["keys"][:, rank], dim=-1), bank,
        float(golden["tau"]), float(golden["tau_bank"]),
    )  # fmt: skip
    result.loss.backward()
    bank.sgd_ascent_step(result.bank_gradient, float(golden["bank_lr"]))
    after = bank.state_dict()
    ours = {
        "cross_entropies": result.cross_entropies,
        "query_grads": queries.grad,
        "bank_after": after["rows"],
        "momentum_after": after["velocity"],
    }
    theirs = golden | {
        "cross_entropies": golden["cross_entropies"][rank],
        "query_grads": golden["query_grads"][:, rank],
    }
    return {key: (value - theirs[key]).abs().max().item() for key, value in ours.items()}


def _adco(queries: torch.Tensor, keys: torch.Tensor, bank: MemoryBank, tau: float, tau_bank: float) -> LossOutput:
    symmetric = len(keys) == 2
    pairs = (Pair(0, 1, 0.5), Pair(1, 0, 0.5)) if symmetric else make_pairs(len(queries) + 1, symmetric=False)
    named = dict(zip((0, 1) if symmetric else (len(queries),), keys, strict=True))
    views = dict(enumerate(queries)), named
    return adversarial_contrast(*views, pairs, bank.rows, tau, tau_bank, True, sharded=bank.sharded)


def _caco(queries: torch.Tensor, keys: torch.Tensor, bank: MemoryBank, tau: float, tau_bank: float) -> LossOutput:
    views = dict(enumerate(queries)), dict(enumerate(keys))
    return cooperative_contrast(*views, make_caco_pairs(len(queries)), bank.rows, tau, tau_bank, bank.sharded)


MODES = {
    ("adco", "asym"): _adco,
    ("adco", "sym"): _adco,
    ("adco", "multi"): _adco,
    ("caco", "sym"): _caco,
    ("caco", "multi"): _caco,
}


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
