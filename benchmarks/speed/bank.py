"""AdCo's loss and bank step against the released one, and against a MoCo loss, whose bank is not learned.

    python benchmarks/run.py bank [--quick] [--device cuda]

From embeddings to the queries' gradient and the updated bank: 256 queries, D = 128, one direction. `released` is our
re-statement of the released AdCo's update (the same calls in the same order), `moco` of what lightly's NTXentLoss with
a memory bank and solo-learn's MoCo loss do: logits, cross-entropy, backward, and the queue's update. `floor` is three
matrix products of the same size. Extra memory is the peak over what was held before the step: of the GPU's memory as
torch allocates it, or of the process's resident memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from adco.config.schema import BankConfig as BankOptions
from adco.losses.adco import adversarial_contrast
from adco.losses.pairs import make_pairs
from adco.models.memory_bank import MemoryBank
from adco.utils.device import set_arithmetic
from benchmarks.speed.race import Options, Outcome, Ratio, race, ratio, repeated

N, D = 256, 128
TAU, TAU_BANK, LR, MOMENTUM, DECAY = 0.12, 0.02, 3.0, 0.9, 1e-4
GOALS = {65536: 4.5, 8192: 2.0}
STEPS_A_ROUND = {"cpu": {65536: 1, 8192: 8}, "cuda": {65536: 20, 8192: 50}}  # rounds of like length
GOAL_MOCO, GOAL_MEMORY = 1.7, 1.2


def run(options: Options) -> Outcome:
    """Time both sizes of the bank, memory at the large one, and the gradients against the released ones in float64."""
    timings, ratios, scores = [], [], {}
    set_arithmetic(options.device)  # float32 for all, which is torch's default for matrix products
    for name in ("released", "moco", "ours"):  # before anything else allocates memory
        scores[f"extra_MiB_65536/{name}"] = extra_memory(CONTESTANTS[name], options.device)
    for size, goal in GOALS.items():
        steps = STEPS_A_ROUND[options.device.type][size]
        works = {f"{name}_{size}": repeated(make(size, options.device), steps) for name, make in CONTESTANTS.items()}
        found = race(works, options.rounds, steps, options.device)
        timings += found.values()
        if size == 65536:  # MoCo's own size; at the small one a queue that does not learn is about as fast
            ratios.append(ratio(f"bank_vs_moco_{size}", found[f"moco_{size}"], found[f"ours_{size}"], GOAL_MOCO))
        ratios.append(ratio(f"bank_vs_released_{size}", found[f"released_{size}"], found[f"ours_{size}"], goal))
    share = scores["extra_MiB_65536/ours"] * 2**20 / (4 * N * 65536)
    ratios.insert(0, Ratio("memory_goal_over_used", GOAL_MEMORY / share, 1.0))
    scores |= gradient_errors(options.device)
    ratios.sort(key=lambda r: "released_65536" in r.name)  # the headline last
    settings = {"queries": N, "dim": D, "threads": torch.get_num_threads(), "tau": TAU, "tau_bank": TAU_BANK}
    return Outcome("step", timings, ratios, scores, "random embeddings", settings)


def embeddings(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Normalized queries and keys, (N, D) each, as similar as those of a trained encoder."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(N, D, generator=generator)
    k = q + 0.5 * torch.randn(N, D, generator=generator)
    return F.normalize(q, dim=1).to(device, dtype), F.normalize(k, dim=1).to(device, dtype)


def ours(size: int, device: torch.device) -> Callable[[], None]:
    """Our loss, its gradients and the bank's step on fixed embeddings."""
    q, k = embeddings(device)
    bank = MemoryBank(BankOptions(size, sgd_momentum=MOMENTUM, weight_decay=DECAY), D).to(device)
    pairs = make_pairs(2, symmetric=False)

    def step() -> None:
        queries = q.clone().requires_grad_()
        result = adversarial_contrast({0: queries}, {1: k}, pairs, bank.rows, TAU, TAU_BANK, True)
        result.loss.backward()
        bank.sgd_ascent_step(result.bank_gradient, LR)

    return step


def released(size: int, device: torch.device) -> Callable[[], None]:
    """The released update on fixed embeddings."""
    q, k = embeddings(device)
    step = released_update(size, device)
    return lambda: step(q.clone().requires_grad_(), k)


def released_update(size: int, device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """Our re-statement of the released update. The step takes queries with gradient and keys, (N, D) each; the columns
    of its bank (D, K) are the negatives."""
    w = torch.randn(D, size, device=device)
    v = torch.zeros_like(w)

    def step(queries: Tensor, k: Tensor) -> None:
        nonlocal w, v
        count = len(queries)
        labels = torch.arange(count, device=device)
        positives = torch.einsum("nc,ck->nk", queries, k.T)
        unit = F.normalize(w, dim=0)
        negatives = torch.einsum("nc,ck->nk", queries, unit)
        logits = torch.cat([positives, negatives], dim=1)
        logits /= TAU
        loss = F.cross_entropy(logits, labels)
        top = logits.topk(5, 1, True, True)[1].t().eq(labels.view(1, -1)).float()
        loss.item(), top[:1].sum().item(), top.sum().item()
        loss.backward()
        with torch.no_grad():
            logits = torch.cat([positives, negatives], dim=1) / TAU_BANK
            p = F.softmax(logits, dim=1)[:, count:]
            g = -_released_direction(queries, p, negatives, unit, w)
            v = MOMENTUM * v + g + DECAY * w
            w = w - LR * v
            torch.softmax(logits, dim=1)[:, :count].sum(dim=1).mean().item()

    return step


def _released_direction(q: Tensor, p: Tensor, negatives: Tensor, unit: Tensor, w: Tensor) -> Tensor:
    """The direction in which the bank's columns move.

    Args:
        q: (N, D) normalized queries.
        p: (N, K) softmax over the bank at its temperature.
        negatives: (N, K) cosines of queries and bank.
        unit: (D, K) the normalized columns.
        w: (D, K) the columns.

    Returns:
        (D, K).
    """
    g = torch.einsum("cn,nk->ck", q.T, p) / len(q) - (p * negatives).mean(dim=0) * unit
    return torch.div(g, w.norm(dim=0)) / TAU_BANK


def moco(size: int, device: torch.device) -> Callable[[], None]:
    """A MoCo loss and its queue, computed as in lightly and solo-learn."""
    q, k = embeddings(device)
    queue = F.normalize(torch.randn(D, size, device=device), dim=0)
    pointer = 0

    def step() -> None:
        nonlocal pointer
        queries = q.clone().requires_grad_()
        positive = torch.einsum("nc,nc->n", queries, k).unsqueeze(-1)
        negatives = torch.einsum("nc,ck->nk", queries, queue.clone().detach())
        logits = torch.cat([positive, negatives], dim=1) / TAU
        F.cross_entropy(logits, torch.zeros(N, dtype=torch.long, device=device)).backward()
        queue[:, pointer : pointer + N] = k.T
        pointer = (pointer + N) % size

    return step


def floor(size: int, device: torch.device) -> Callable[[], None]:
    """Three matrix products of N x K x D and nothing else."""
    q, _ = embeddings(device)
    n, out, back, pull = (
        torch.randn(size, D, device=device),
        *(torch.empty(shape, device=device) for shape in ((N, size), (N, D), (size, D))),
    )

    def step() -> None:
        torch.mm(q, n.T, out=out)
        torch.mm(out, n, out=back)
        torch.mm(out.T, q, out=pull)

    return step


CONTESTANTS: dict[str, Callable[[int, torch.device], Callable[[], object]]] = {
    "released": released, "moco": moco, "ours": ours, "floor": floor,
}  # fmt: skip


def extra_memory(
    make: Callable[[int, torch.device], Callable[[], object]], device: torch.device, size: int = 65536
) -> float:
    """MiB that a first step needs at its peak beyond queries, keys and bank. A small step loads the libraries first."""
    make(512, device)()
    step = make(size, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak of resident memory
    before = _resident("VmRSS")
    step()
    return (_resident("VmHWM") - before) / 2**10


def gradient_errors(device: torch.device, size: int = 8192) -> dict[str, float]:
    """The largest errors of float32 against the released formulas in float64, relative to the largest entry.

    For the queries' gradient and the bank's direction, of our formulas and of the released ones in float32.
    """
    bank = torch.randn(size, D, generator=torch.Generator().manual_seed(1)).to(device)
    exact, errors = _released_gradients(bank.double()), {}
    for name, gradients in {"ours": _our_gradients, "released": _released_gradients}.items():
        for part, gradient, true in zip(("queries", "bank"), gradients(bank), exact, strict=True):
            errors[f"gradient_error_{part}/{name}"] = ((gradient - true).abs().max() / true.abs().max()).item()
    return errors


def _our_gradients(bank: Tensor) -> tuple[Tensor, Tensor]:
    q, k = embeddings(bank.device, bank.dtype)
    q.requires_grad_()
    result = adversarial_contrast({0: q}, {1: k}, make_pairs(2, False), bank, TAU, TAU_BANK, True)
    result.loss.backward()
    return q.grad, result.bank_gradient.whole()


def _released_gradients(bank: Tensor) -> tuple[Tensor, Tensor]:
    q, k = embeddings(bank.device, bank.dtype)
    q.requires_grad_()
    w = bank.T
    unit = F.normalize(w, dim=0)
    logits = torch.cat([q @ k.T, q @ unit], dim=1)
    F.cross_entropy(logits / TAU, torch.arange(N, device=bank.device)).backward()
    with torch.no_grad():
        p = F.softmax(logits / TAU_BANK, dim=1)[:, N:]
        return q.grad, _released_direction(q, p, logits[:, N:], unit, w).T


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
