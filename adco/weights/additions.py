"""The user's own models in the zoo: files that came by other means, and rows of the user's manifest."""

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
    """Copy a file that came by other means into the cache as `model`, after a download's checks. Returns its sha256."""
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
    """A row of the user's own: `source` is a checkpoint file, which is copied into the cache, or an http(s) address.

    keys: any of the manifest's. Raises UserError: a name that is taken, a file that holds no ResNet we can read.
    """
    own = own_manifest()
    row = {key: value for key, value in keys.items() if value is not None}
    if re.match(r"https?://", source):
        row["mirrors"] = [source]
    else:
        from adco.weights.backbone import load_backbone  # torch: only here

        found = load_backbone(_existing(Path(source)))
        row |= {"arch": found.arch, "layout": found.source, "sha256": found.sha256}
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
