"""Add to the zoo: a file of a known model that was not downloaded by the zoo, or a model of the user's own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import yaml

from adco.utils.download import DownloadError
from adco.utils.errors import UserError
from adco.utils.files import atomic_write, file_lock, write_text
from adco.weights.manifest import SCHEMA, Model, as_model, own_manifest, read_rows, suffix_of
from adco.weights.zoo import accept, models, save_record


def add_file(model: Model, file: Path) -> str:
    """Copy a file into the cache as the file of `model`, after the same checks as for a download.

    Returns:
        The file's sha256 in hexadecimal.

    Raises:
        UserError: The file is absent or is not the model's, or the model belongs to the package.
    """
    if model.file:
        raise UserError(f"{model.name}: its file is {model.path} already; choose another name")
    try:
        digest = accept(model, _existing(file))
    except DownloadError as reason:
        raise UserError(f"{file}: {reason}; not taken as {model.name}") from reason
    _copy(file, model.path)
    save_record(model, digest, file.name)
    return digest


def add_model(name: str, source: str, **keys: object) -> Model:
    """Add a row to the user's own manifest.

    Args:
        name: Name of the new model.
        source: A checkpoint file, which is copied into the cache, or an http(s) address.
        keys: Other keys of the row, e.g. method, epochs, licence (adco/weights/manifest.py); None is left out.

    Returns:
        The new model.

    Raises:
        UserError: The name is taken, a key is not valid, or the file has no ResNet that `load_backbone` can read.
    """
    own = own_manifest()
    row = {key: value for key, value in keys.items() if value is not None}
    if re.match(r"https?://", source):
        row["mirrors"] = [source]
    else:
        from adco.weights.backbone import load_backbone  # imports torch, which an address does not need

        backbone = load_backbone(_existing(Path(source)))
        row |= {"arch": backbone.arch, "layout": backbone.source, "sha256": backbone.sha256}
        row |= {"bytes": Path(source).stat().st_size, "file": name + suffix_of(source)}
    model = as_model(own, name, row)
    with file_lock("zoo-manifest"):
        if name in models():
            raise UserError(f"{name}: this name is taken; choose another")
        if model.file:
            _copy(Path(source), model.path)
        rows = read_rows(own) if own.is_file() else {}
        write_text(own, yaml.safe_dump({"schema": SCHEMA, "models": rows | {name: row}}, sort_keys=False))
    return model


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as content, atomic_write(target) as file:
        shutil.copyfileobj(content, file, 1 << 20)


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    return file
