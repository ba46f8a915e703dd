"""Choose the config and split that `name`, `name:split`, `name:config` or `name:config:split` refers to."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from preftune.errors import DataError

TRAIN = "train"
HELD_OUT = ("test", "valid", "dev", "eval")  # prefixes of splits that are not meant for training
MAX_NAMES = 8  # names listed in one message


def choose_part(
    target: str,
    parts: Sequence[str],
    configs: Sequence[str],
    default: str | None,
    splits_of: Callable[[str], Sequence[str]],
) -> tuple[str, str]:
    """Return the config and split that `target` followed by `parts` refers to.

    `default` is the config of a name without parts. Raises DataError if the name matches nothing or is ambiguous; the
    error lists the configs or splits and suggests a name.
    """
    base = default or (configs[0] if len(configs) == 1 else None)
    where = ":".join([target, *parts])
    config, split = base, TRAIN
    if len(parts) == 2:
        config, split = parts
    elif parts:
        (word,) = parts
        is_split = base is not None and word in splits_of(base)
        if is_split and word in configs and (word, TRAIN) != (base, word):
            raise DataError(
                f"{word!r} is both a config and a split",
                where=where,
                fix=f"write {target}:{word}:{TRAIN} or {target}:{base}:{word}",
            )
        config, split = (word, TRAIN) if word in configs and not is_split else (base, word)
    if config is None or config not in configs:
        raise _no_config(target, parts, configs, splits_of)
    if split not in splits_of(config):
        raise _no_split(target, where, config, split, config == base, splits_of(config), configs)
    return config, split


def _no_config(
    target: str, parts: Sequence[str], configs: Sequence[str], splits_of: Callable[[str], Sequence[str]]
) -> DataError:
    where = ":".join([target, *parts])
    if len(configs) == 1:
        split = nearest(parts[-1], splits_of(configs[0]))
        what = f"the dataset has no config {parts[0]!r}; its only config is {configs[0]!r}"
        return DataError(what, where=where, fix=f"write {target}:{split}")
    config = nearest(parts[0], configs) if parts else configs[0]
    split = nearest(parts[-1] if parts else TRAIN, splits_of(config))
    missing = f"the dataset has no config {parts[0]!r}; it" if parts else "the dataset"
    return DataError(
        f"{missing} has the configs {join_names(configs)}",
        where=where,
        why="the name must include the config",
        fix=f"write {target}:CONFIG or {target}:CONFIG:SPLIT, such as {target}:{config}:{split}",
    )


def _no_split(
    target: str, where: str, config: str, split: str, base: bool, splits: Sequence[str], configs: Sequence[str]
) -> DataError:
    owner = "the dataset" if len(configs) == 1 else f"config {config!r}"
    available = join_names(splits) or "no split"
    name = f"{target}:{nearest(split, splits)}" if base else f"{target}:{config}:{nearest(split, splits)}"
    why = f"the configs are {join_names(configs)}" if len(configs) > 1 else ""
    return DataError(f"{owner} has no split {split!r}; it has {available}", where=where, why=why, fix=f"write {name}")


def nearest(wanted: str, names: Sequence[str]) -> str:
    """Return the first name that begins with `wanted`, else the most similar one, else the first one."""
    begin = [name for name in names if wanted and name.startswith(wanted)]
    return next(iter(begin or difflib.get_close_matches(wanted, names, n=1, cutoff=0.3) or names), wanted)


def join_names(names: Sequence[str], limit: int = MAX_NAMES) -> str:
    """Join the first `limit` names with commas and say how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def notes_on_unread_parts(
    target: str, parts: Sequence[str], configs: Sequence[str], config: str, split: str, splits: Sequence[str]
) -> list[str]:
    """Notes on the splits and configs that are not read. A user who reads a `test` split gets no note on splits."""
    notes = []
    others = [name for name in splits if name != split]
    if others and not split.startswith(HELD_OUT):
        name = f"{target}:{others[0]}" if config not in parts else f"{target}:{config}:{others[0]}"
        notes.append(f"only split {split!r} is used; also available: {join_names(others)} (write {name})")
    if len(configs) > 1 and config not in parts:
        rest = [name for name in configs if name != config]
        notes.append(f"only config {config!r} is used; also available: {join_names(rest)} (write {target}:{rest[0]})")
    return notes
