"""Records of schema 1 in the terms of schema 2. Nothing is made up: what was not recorded stays unknown."""

from __future__ import annotations

from collections.abc import Mapping

from adco.evaluation.records import SCHEMA, Score, as_checkpoint, as_data
from adco.utils.errors import UserError
from adco.utils.serialization import plain

KEYS = {
    "protocol", "scores", "checkpoint", "data", "settings", "duration_seconds", "hardware", "versions", "commit",
    "command", "created", "schema",
}  # fmt: skip


def upgraded(content: Mapping[str, object], where: str) -> dict[str, object]:
    """The plain form of schema 2: intervals, deviations and trials go from `settings` and `NAME_std` into the scores.

    Raises UserError that begins with `where` for a key that schema 1 did not have or a part of another type.
    """
    if strangers := sorted(set(content) - KEYS):
        raise UserError(f"{where}: unknown key {strangers[0]!r} in a record of schema 1")
    for key in ("scores", "checkpoint", "data", "settings"):
        if not isinstance(content.get(key, {} if key == "settings" else None), Mapping):
            raise UserError(f"{where}: {key}: expected keys and values, found {content.get(key)!r}")
    settings = dict(content.get("settings", {}))
    intervals, over_draws = settings.pop("interval95", {}), "interval_of" in settings
    settings.pop("interval_of", None)
    trials = [trial["scores"] for trial in settings.get("each_trial", ())]
    scores = {}
    for name, value in content["scores"].items():
        if name.removesuffix("_std") != name and name.removesuffix("_std") in content["scores"]:
            continue
        if trials or over_draws:  # low-shot: `k1/trials` has the draws of `mAP/k1`
            values = [trial[name] for trial in trials if name in trial] or settings.get(f"{name[4:]}/trials", [value])
            scores[name] = plain(Score.over_trials(values))
        elif name in intervals:
            scores[name] = plain(Score.over_images(value, intervals[name]))
        else:
            scores[name] = {"value": value}
    checkpoint = dict(content["checkpoint"])
    if content["protocol"].startswith("pretrain/"):
        checkpoint |= {"method": content["protocol"].partition("/")[2], "epochs": settings.get("epochs")}
    parts = {"checkpoint": plain(as_checkpoint(checkpoint)), "data": plain(as_data(content["data"]))}
    return dict(content) | parts | {"scores": scores, "settings": settings, "schema": SCHEMA}
