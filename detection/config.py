"""The config of one run: config file and overrides, checked and fitted to the available GPUs before any work starts.

Batch, learning rate and schedule are set in `detection/batch_scaling.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from adco.utils.errors import UserError

SYNC_NORMS = ("SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
NORMS = ("SyncBN", "naiveSyncBN", "BN", "FrozenBN")
NORM_OWNERS = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
NOT_PART_OF_PROTOCOL = (
    "MODEL.WEIGHTS", "MODEL.DEVICE", "OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "SEED", "TEST.EXPECTED_RESULTS",
)  # fmt: skip
NOT_GIVEN = "MODEL.WEIGHTS-not-given.pkl"


def load_config(config_file: str, overrides: Sequence[str]) -> CfgNode:
    """Read a config: detectron2's defaults, then the file, then the overrides.

    Args:
        config_file: Path of the YAML file.
        overrides: KEY, VALUE, KEY, VALUE, ...

    Raises:
        UserError: The file is missing or not a detectron2 config, a key is unknown, or test-time augmentation is on.
    """
    if not Path(config_file).is_file():
        raise UserError(f"{config_file or '--config-file'}: no such config file; ours are detection/configs/*.yaml")
    cfg = get_cfg()
    try:
        cfg.merge_from_file(config_file)
    except Exception as error:
        raise UserError(f"{config_file}: not a detectron2 config: {first_line(error)}") from error
    try:
        cfg.merge_from_list(list(overrides))
    except Exception as error:
        raise UserError(f"{' '.join(overrides)}: expected KEY VALUE pairs: {first_line(error)}") from error
    if cfg.TEST.AUG.ENABLED:
        raise UserError("TEST.AUG.ENABLED: test-time augmentation is not part of these protocols; set it to False")
    return cfg


def choose_gpus(asked: int | None, device: str | None, available: int) -> int:
    """The number of GPUs to use on this machine; 0 means the CPU.

    Args:
        asked: --num-gpus, or None where it was not given: one GPU if there is one, as in detectron2, else the CPU.
        device: MODEL.DEVICE where the user gave it, else None.
        available: Number of GPUs of this machine.

    Raises:
        UserError: More GPUs are asked for than available, or --num-gpus contradicts MODEL.DEVICE.
    """
    wants_gpu = device is not None and device.startswith("cuda")
    if wants_gpu and (available == 0 or asked == 0):
        there = "this machine has no GPU that torch can use" if available == 0 else "--num-gpus is 0"
        raise UserError(f"MODEL.DEVICE {device}: {there}; use --num-gpus 0 without MODEL.DEVICE for the CPU")
    if device == "cpu":
        if asked is not None and asked > 1:
            raise UserError(f"--num-gpus {asked} contradicts MODEL.DEVICE cpu; leave one of them out")
        return 0
    if asked is None:
        return min(available, 1)
    if asked < 0 or asked > available:
        raise UserError(f"--num-gpus {asked}: torch finds {available} here; use --num-gpus {min(available, 1)}")
    return asked


def device_of(overrides: Sequence[str]) -> str | None:
    """The last MODEL.DEVICE among `KEY VALUE` pairs, None when there is none."""
    values = [value for key, value in zip(overrides[::2], overrides[1::2], strict=False) if key == "MODEL.DEVICE"]
    return values[-1] if values else None


def deviations(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that can make a run differ from its protocol, each as `KEY VALUE`."""
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    return tuple(f"{key} {value}" for key, value in pairs if key not in NOT_PART_OF_PROTOCOL)


def check_machines(machines: int, rank: int, dist_url: str) -> None:
    """Raise UserError for a machine rank out of range, or an address at which several machines cannot connect."""
    if not 0 <= rank < machines:
        raise UserError(f"--machine-rank {rank}: with --num-machines {machines} it goes from 0 to {machines - 1}")
    local = dist_url == "auto" or any(name in dist_url for name in ("127.0.0.1", "localhost"))
    if machines > 1 and local:
        raise UserError(f"--dist-url {dist_url}: give tcp://HOST:PORT of machine 0, the same address on every machine")


def fit_to_hardware(cfg: CfgNode, gpus: int, machines: int = 1, norm: str | None = None) -> list[str]:
    """Set device and norm layers for the hardware.

    Args:
        cfg: The config; changed in place.
        gpus: Number of GPUs of each machine; 0 means the CPU.
        machines: Number of machines.
        norm: One of NORMS for every part of the detector that has a norm; None keeps the config's.

    Returns:
        A line for each change.

    Raises:
        UserError: Mixed precision or several machines without GPUs.
    """
    notes = choose_norm(cfg, norm) if norm is not None else []
    if gpus == 0 and cfg.SOLVER.AMP.ENABLED:
        raise UserError("SOLVER.AMP.ENABLED: mixed precision needs a GPU; leave it out on the CPU")
    if gpus == 0:
        if machines > 1:
            raise UserError(f"--num-machines {machines}: several machines need GPUs; use one machine for the CPU")
        if cfg.MODEL.DEVICE != "cpu":
            cfg.MODEL.DEVICE = "cpu"
            notes.append("running on the CPU: MODEL.DEVICE cpu")
    return notes + fit_norm(cfg, max(gpus * machines, 1))


def choose_norm(cfg: CfgNode, norm: str) -> list[str]:
    """Set `norm` in every part of the detector that has a norm; returns a line for each change."""
    notes = []
    for owner in NORM_OWNERS:
        before = cfg.MODEL[owner].NORM
        if before and before != norm:
            cfg.MODEL[owner].NORM = norm
            notes.append(f"--norm: MODEL.{owner}.NORM {norm} (the config says {before})")
    return notes


def fit_norm(cfg: CfgNode, workers: int) -> list[str]:
    """Replace the synchronised norms by BN where there is only one process; returns a line for each change."""
    notes = []
    for owner in NORM_OWNERS:
        norm = cfg.MODEL[owner].NORM
        if workers == 1 and norm in SYNC_NORMS:
            cfg.MODEL[owner].NORM = "BN"
            notes.append(f"one process: MODEL.{owner}.NORM BN (the config says {norm})")
    return notes


def check_weights(weights: str) -> None:
    """Raise UserError unless MODEL.WEIGHTS is an existing file, an address that detectron2 can download, or ""."""
    if weights == NOT_GIVEN:
        raise UserError(
            "MODEL.WEIGHTS is not given: add `MODEL.WEIGHTS X.pkl` (tools/convert_to_d2.py makes it), "
            "or `MODEL.WEIGHTS ''` for random initialisation"
        )
    if weights and "://" not in weights and not Path(weights).is_file():
        raise UserError(f"{weights}: no such weights file; tools/convert_to_d2.py makes one from a checkpoint")


def first_line(error: Exception, length: int = 300) -> str:
    """The first line of an error's text, at most `length` characters; the name of its type where it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:length]
