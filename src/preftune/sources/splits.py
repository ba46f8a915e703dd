"""Which config and split of a dataset a name asks for: `name`, `name:split`, `name:config` or `name:config:split`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from preftune.errors import DataError

TRAIN = "train"
HELD_OUT = ("test", "valid", "dev", "eval")  # how the names of splits begin that are not trained on
NAMED = 8  # names in a message


def choose(
    target: str,
    parts: Sequence[str],
    configs: Sequence[str],
    default: str | None,
    splits_of: Callable[[str], Sequence[str]],
) -> tuple[str, str]:
    """Config and split that `target` with these parts of its name means; `default` is the config of a bare name.

    Raises DataError that lists what there is, with a name to type, if nothing fits or if two things do.
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
        what = f"it has no config {parts[0]!r}; its only config is {configs[0]!r}"
        return DataError(what, where=where, fix=f"write {target}:{split}")
    config = nearest(parts[0], configs) if parts else configs[0]
    split = nearest(parts[-1] if parts else TRAIN, splits_of(config))
    lack = f"it has no config {parts[0]!r}; " if parts else ""
    return DataError(
        f"{lack}it has the configs {listed(configs)}",
        where=where,
        why="the name must say which one to read",
        fix=f"write {target}:CONFIG or {target}:CONFIG:SPLIT, such as {target}:{config}:{split}",
    )


def _no_split(
    target: str, where: str, config: str, split: str, base: bool, splits: Sequence[str], configs: Sequence[str]
) -> DataError:
    owner = "it" if len(configs) == 1 else f"its config {config!r}"
    there = listed(splits) or "no split"
    name = f"{target}:{nearest(split, splits)}" if base else f"{target}:{config}:{nearest(split, splits)}"
    why = f"its configs are {listed(configs)}" if len(configs) > 1 else ""
    return DataError(f"{owner} has no split {split!r}; it has {there}", where=where, why=why, fix=f"write {name}")


def nearest(wanted: str, names: Sequence[str]) -> str:
    """The first name that begins with `wanted`, else the one that looks most like it, else the first."""
    begin = [name for name in names if wanted and name.startswith(wanted)]
    return next(iter(begin or difflib.get_close_matches(wanted, names, n=1, cutoff=0.3) or names), wanted)


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """The names with commas; of many only the first."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def not_read(
    target: str, parts: Sequence[str], configs: Sequence[str], config: str, split: str, splits: Sequence[str]
) -> list[str]:
    """Notes on the splits and configs that are there beside the ones that are read.

    Someone who reads a `test` split has the other splits in mind already: nothing is said then.
    """
    notes = []
    others = [name for name in splits if name != split]
    if others and not split.startswith(HELD_OUT):
        name = f"{target}:{others[0]}" if config not in parts else f"{target}:{config}:{others[0]}"
        notes.append(f"only split {split!r} is used here; not used here: {listed(others)} (as in {name})")
    if len(configs) > 1 and config not in parts:
        rest = [name for name in configs if name != config]
        notes.append(f"only config {config!r} is used here; not used here: {listed(rest)} (as in {target}:{rest[0]})")
    return notes
