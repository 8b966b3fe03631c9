"""The model zoo: `zoo://NAME` -> a checkpoint in the cache whose checksum was verified.

`zoo.yaml` beside this file lists the models; `zoo/zoo.yaml` in the cache folder lists the user's own. Where an owner
publishes no checksum, the sha256 of the first download is recorded beside the file, and later downloads must match it.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
import re
from datetime import datetime, timezone
from pathlib import Path

from adco.utils.download import PATIENT, DownloadError, RetryPolicy, check_head, discard, fetch
from adco.utils.errors import UserError
from adco.utils.files import file_lock, sha256_of, write_text
from adco.weights.manifest import MANIFEST, Model, own_manifest, read_manifest

SCHEME = re.compile(r"zoo:/{1,2}")  # pathlib writes two slashes as one


def models() -> dict[str, Model]:
    """All models by name: the package's, then the user's own."""
    own = own_manifest()
    added = read_manifest(own) if own.is_file() else {}
    return _packaged() | {name: model for name, model in added.items() if name not in _packaged()}


@functools.cache
def _packaged() -> dict[str, Model]:
    return read_manifest(MANIFEST)


def find(name: str) -> Model:
    """The model of `NAME` or `zoo://NAME`.

    Raises:
        UserError: There is none of that name; the message suggests the most similar one.
    """
    name, known = SCHEME.sub("", name), models()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"zoo://{name}: no such model{hint} (python tools/zoo.py list)")
    return known[name]


def is_zoo(path: str | Path) -> bool:
    """Whether a checkpoint is given as `zoo://NAME`."""
    return SCHEME.match(str(path)) is not None


def resolve(path: str | Path) -> Path:
    """The file of a checkpoint: for `zoo://NAME` the verified file, downloaded if needed; other paths unchanged."""
    return download(find(str(path))) if is_zoo(path) else Path(path)


def download(model: Model, offline: bool = False, patience: RetryPolicy = PATIENT) -> Path:
    """Download a model's file into the cache, or verify the file that is already there.

    Args:
        model: The model, as `find` returns it.
        offline: Do not use the network. ADCO_OFFLINE=1 in the environment has the same effect.
        patience: Timeout and number of tries of each mirror.

    Returns:
        The path of the verified file.

    Raises:
        UserError: Says for each mirror why it did not give the file. A partial download is kept and resumed next time.
    """
    if model.file or model.path.is_file():
        verify(model)
        return model.path
    if offline or os.environ.get("ADCO_OFFLINE", "0") not in ("", "0"):
        raise UserError(
            f"zoo://{model.name}: not in the cache, and offline; where there is a network run `python tools/zoo.py "
            f"download {model.name}`, and here `python tools/zoo.py add {model.name} FILE`"
        )
    reasons = []
    with file_lock(f"zoo-{model.name}"):
        if model.path.is_file():  # another process has downloaded it
            verify(model)
            return model.path
        for url in model.mirrors:
            try:
                return _from_mirror(model, url, patience)
            except DownloadError as reason:
                reasons.append(f"{url}: {reason}")
    raise UserError(
        f"zoo://{model.name}: no mirror gave the file. {'; '.join(reasons)}. Once you have it by other means "
        f"(a browser, another machine): `python tools/zoo.py add {model.name} FILE`"
    )


def verify(model: Model) -> str:
    """Compare a model's file with the published and recorded checksums.

    Returns:
        The file's sha256 in hexadecimal.

    Raises:
        UserError: The file is absent, has another checksum, or no checksum is known.
    """
    if not model.path.is_file():
        raise UserError(f"{model.path}: not there; `python tools/zoo.py download {model.name}`")
    checks = expected(model)
    if not checks:
        raise UserError(
            f"{model.path}: no checksum is known, this file came by other means; move it elsewhere and "
            f"`python tools/zoo.py add {model.name} FILE`"
        )
    try:
        return _compare(model.path, checks)
    except DownloadError as reason:
        advice = "install again" if model.file else f"delete it and `python tools/zoo.py download {model.name}`"
        raise UserError(f"{model.path}: {reason}; {advice}") from reason


def expected(model: Model) -> dict[str, str]:
    """The checksums that a model's file must have, as `ALGORITHM:FIRST_DIGITS` -> where that comes from.

    These are the published and the recorded sha256; the published first digits only where neither is known.
    """
    checks = {f"sha256:{model.sha256}": "published"} if model.sha256 else {}
    if recorded := read_record(model):
        checks.setdefault(f"sha256:{recorded['sha256']}", f"recorded on {recorded['date']} in {model.record}")
    if model.hash_prefix and not checks:
        checks[model.hash_prefix] = "published"
    return checks


def read_record(model: Model) -> dict[str, object] | None:
    """{sha256, from, date} of the first download, or None where there was none.

    Raises:
        UserError: The record's file is damaged.
    """
    try:
        record = json.loads(model.record.read_text())
        if re.fullmatch(r"[0-9a-f]{64}", record["sha256"]) and record["date"]:
            return record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{model.record}: not readable as the record of a download; delete it to record anew")


def _from_mirror(model: Model, url: str, patience: RetryPolicy) -> Path:
    """Download, check and record a file, and only then give it its final name. Raises DownloadError."""
    part = model.path.with_name(model.path.name + ".part")
    fetch(url, part, model.bytes, patience, model.name)
    try:
        digest = accept(model, part)
    except DownloadError:
        discard(part)
        raise
    save_record(model, digest, url)
    os.replace(part, model.path)
    discard(part)
    return model.path


def accept(model: Model, file: Path) -> str:
    """Check a new file before it becomes the model's: its first bytes, its size and its checksums.

    Returns:
        The file's sha256 in hexadecimal.

    Raises:
        DownloadError: The file is not the model's; the text is the reason.
    """
    check_head(file)
    size = file.stat().st_size
    if model.bytes not in (None, size):
        raise DownloadError(f"has {size} bytes, expected {model.bytes}")
    return _compare(file, expected(model) | ({model.hash_prefix: "published"} if model.hash_prefix else {}))


def _compare(file: Path, checks: dict[str, str]) -> str:
    """The file's sha256. Raises DownloadError where a digest does not start with the digits in `checks`."""
    digests = {"sha256": sha256_of(file)}
    for check, origin in checks.items():
        algorithm, _, digits = check.partition(":")
        if algorithm == "md5":
            digests["md5"] = _md5_of(file)
        if not digests[algorithm].startswith(digits):
            raise DownloadError(f"its {algorithm} is {digests[algorithm]}, expected {digits} ({origin})")
    return digests["sha256"]


def _md5_of(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_record(model: Model, digest: str, origin: str) -> None:
    """Write the record of a first download; an existing record is kept, because `accept` has compared against it."""
    if not model.record.is_file():
        date = datetime.now(timezone.utc).date().isoformat()
        record = {"sha256": digest, "from": origin, "date": date}
        write_text(model.record, json.dumps(record, indent=2) + "\n")
