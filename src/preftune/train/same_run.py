"""Whether a run folder holds the run that a command asks for, the same run with fewer steps, or a different one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from preftune.errors import RunError
from preftune.locks import NAME as LOCK
from preftune.train.manifest import COPY

#: Config keys that may differ when a run resumes: they do not affect the data, and the weights only in the last digits.
CHANGEABLE = {
    ("confidence",),
    ("train", "log_every"),
    ("train", "eval_every"),
    ("train", "save_every"),
    ("train", "save_end"),
    ("best", "patience"),
    ("track",),
    ("track_names",),
    ("out",),
    ("batch", "tokens"),
    ("monitor",),
    ("samples",),
    ("report_pairs",),
}
#: Setting -> its default in earlier versions, and its default now. A run resumes if its token ids are still the same.
NEW_DEFAULTS: dict[tuple[str, ...], tuple[Any, Any]] = {("data", "as_chat"): (False, "auto")}
#: Config keys that can be raised on a finished run to extend it; null is the highest value.
RAISABLE = (("train", "epochs"), ("train", "max_steps"), ("best", "patience"))


def limit(config: Mapping[str, Any], key: tuple[str, str]) -> float:
    """Return the value of a key of RAISABLE; infinity for null."""
    value = (config.get(key[0]) or {}).get(key[1])
    return math.inf if value is None else float(value)


def asks_for_more(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Return whether `config` asks for more steps than the finished run of `manifest` has."""
    before = manifest["identity"]["config"]
    if "stopped_early" in manifest:
        return limit(config, ("best", "patience")) > int(manifest["stopped_early"])
    return any(limit(config, key) > limit(before, key) for key in RAISABLE[:2])


def extension_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a finished run that is extended: unfinished, with its end so far added to `extended`."""
    config = manifest["identity"]["config"]
    settings = {".".join(key): (config.get(key[0]) or {}).get(key[1]) for key in RAISABLE}
    steps = manifest.get("steps")
    end = {"step": steps, "planned": manifest.get("planned", steps), **settings, "best": manifest.get("best")}
    kept = {name: value for name, value in manifest.items() if name not in ("stopped_early", "best")}
    return {**kept, "finished": False, "extended": [*manifest.get("extended", []), end]}


def require_empty(folder: Path) -> None:
    """Raise RunError if the folder has files, unless a command that was killed before it wrote a manifest left them."""
    names = sorted(path.name for path in folder.iterdir() if not _is_leftover(path)) if folder.is_dir() else []
    if names:
        what = f"the folder is not empty and is not a run: {', '.join(names[:5])}"
        raise RunError(what, where=str(folder), fix="choose a different `out`")


def _is_leftover(path: Path) -> bool:
    return path.name.startswith(LOCK) or ".part-" in path.name or path.name == COPY


def planned_steps(earlier_ends: Sequence[Mapping[str, Any]], step: int, total: int) -> int:
    """Return the number of steps of the schedule that `step` follows: that of the next end so far, or `total`."""
    for end in earlier_ends:
        if end.get("planned") and step <= end["step"]:
            return int(end["planned"])
    return total


def require_same(
    old: dict[str, Any], new: dict[str, Any], folder: Path, manifest: Mapping[str, Any], longer: bool
) -> None:
    """Raise RunError if the identity of the run in `folder`, `old`, differs from that of the command, `new`.

    `longer`: the command extends the finished run.
    """
    allowed = CHANGEABLE - ({("train", "eval_every")} if old["config"].get("best") else set())
    if longer:
        allowed |= {key for key in RAISABLE if limit(new["config"], key) >= limit(old["config"], key)}
    changes = [
        f"{'.'.join(key)} was {json.dumps(before)}, is now {json.dumps(now)}"
        for key, before, now in _differences(old["config"], new["config"])
        if not {key, key[:1]} & allowed and NEW_DEFAULTS.get(key) != (before, now)
    ]
    for name in sorted((old.keys() | new.keys()) - {"config"}):
        if name in old and old[name] != new.get(name):  # earlier versions did not record every fingerprint
            changes.append("the data files have changed" if name == "data" else f"{name} has changed")
    if changes:
        raise RunError(
            "the folder contains a run with different settings",
            where=str(folder),
            why="; ".join(changes),
            fix=_fix_for(old, new, manifest),
        )


def _fix_for(old: dict[str, Any], new: dict[str, Any], manifest: Mapping[str, Any]) -> str:
    """Return what to do about changed settings."""
    fix = "restore the earlier settings to resume, or choose a different `out` for a new run"
    if not any(limit(new["config"], key) > limit(old["config"], key) for key in RAISABLE[:2]):
        return fix
    if manifest.get("stopped_early"):
        return f"{fix}; to continue this run, which stopped early, raise best.patience"
    return fix if manifest.get("finished") else f"{fix}; more steps are possible once the run is finished"


def _differences(
    old: dict[str, Any], new: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield (key path, old value, new value) of every setting that differs."""
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, (*path, key))
        elif before != now:
            yield (*path, key), before, now


def with_defaults(config: dict[str, Any], schema: type[BaseModel] | None) -> dict[str, Any]:
    """Return a stored config, with defaults for settings that did not exist when it was written."""
    if schema is None:
        return config
    try:
        return schema.model_validate(config).model_dump(mode="json")
    except ValidationError:  # it has settings that no longer exist; the comparison will report them
        return config


def no_checkpoint(folder: Path) -> RunError:
    """Return the error for a finished run that cannot be extended."""
    return RunError(
        "this run is finished and has no checkpoint, so it cannot continue with more steps",
        where=str(folder),
        why="a run saves one at its end unless train.save_end=false",
        fix=f"restore the earlier settings, or start a new run from its model: model.path={folder} out=...",
    )


def different_start(folder: Path, is_finished: bool) -> RunError:
    """Return the error for a model whose weights are not those that the run in `folder` started from."""
    kind = "finished" if is_finished else "unfinished"
    return RunError(
        "the model is not the one this run started from",
        where=str(folder),
        why=f"its weights differ from those at step 0 of this {kind} run; training changes a model in memory",
        fix="pass the original model, or choose a different `out`",
    )
