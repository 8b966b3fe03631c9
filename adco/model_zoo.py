"""MODEL_ZOO.md's rows from records."""

from __future__ import annotations

from collections.abc import Mapping

from adco.records import Data, Record

HEADLINES = ("mAP", "sample_AP", "top1", "AP", "AP50", "AP75", "segm/AP", "knn_top1")  # worth a cell, in this order


def _headlines(record: Record) -> list[tuple[str, str]]:
    """The scores worth a cell, with the deviation over trials where there were some; low-shot's mAP for every k."""
    found = []
    for name, score in record.scores.items():
        if name in HEADLINES or name.startswith("mAP/k"):
            over_seeds = score.std is not None and not name.startswith("mAP/k")
            found.append((name, f"{score:.2f} ± {score.std:.2f}" if over_seeds else f"{score:.2f}"))
    return sorted(found, key=lambda item: HEADLINES.index(item[0]) if item[0] in HEADLINES else len(HEADLINES))


def as_markdown(records: Mapping[str, Record]) -> str:
    """The measured rows of MODEL_ZOO.md. records: path of the file, relative to the project -> its record."""
    lines = ["| model | protocol | scores (%) | data | hardware | record |", "|---|---|---|---|---|---|"]
    for path, record in records.items():
        scores = ", ".join(f"{name} {score}" for name, score in _headlines(record))
        model = path.split("/")[-2]
        cells = (
            model,
            record.protocol,
            scores or "none",
            _data_in_words(record.data),
            record.hardware,
            f"[json]({path})",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _data_in_words(data: Data) -> str:
    """Name and size of what a record was measured on, so that a subset is never taken for the whole."""
    counts, details = data.counts, data.details
    train = counts.get("train_images") or counts.get("trainval_images") or counts.get("images")
    test = counts.get("val_images") or counts.get("test_images")
    train = train or sum(part["images"] for part in details.get("train", ()))
    test = test or sum(part["images"] for part in details.get("test", ()))
    sizes = ", ".join(f"{count} {split}" for split, count in (("train", train), ("test", test)) if count)
    subset = "; not the official set" if data.official is False else ""
    return f"{data.name} ({sizes}{subset})" if sizes else data.name
