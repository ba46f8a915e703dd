"""Split groups by prompt: hold out a share, make folds, and refuse prompts that are in both files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from preftune.errors import DataError
from preftune.types import PreferenceGroup


def hold_out(groups: Sequence[PreferenceGroup], share: float) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """Split the groups by prompt and return (train, held out), with about `share` of the prompts held out.

    The hash of a prompt decides. No prompt and no row is on both sides, so all turns of a dialogue stay together.
    """
    keys = [prompt_key(group) for group in groups]
    components = _components(keys, [group.origin for group in groups])
    target, held = max(1, round(share * len(set(keys)))), set[str]()
    for component in components:
        if len(held) + len(component) <= target:
            held.update(component)
    held = held or set(min(components, key=len, default=()))
    if len(held) == len(set(keys)):
        same = f"all {len(groups)} groups have the same {'' if groups and groups[0].prompt else '(empty) '}prompt"
        raise DataError(
            "cannot hold out a share of the prompts",
            where=groups[0].origin.rpartition(":")[0] or groups[0].origin if groups else "",
            why="all prompts are connected by common rows, and a row cannot be split" if len(held) > 1 else same,
            fix="set data.eval to an evaluation file",
        )
    sides = [(group, key in held) for group, key in zip(groups, keys, strict=True)]
    return [group for group, out in sides if not out], [group for group, out in sides if out]


def folds(groups: Sequence[PreferenceGroup], number: int) -> list[list[PreferenceGroup]]:
    """Split the groups into `number` parts of similar size, by prompt as in `hold_out`. Raises DataError."""
    keys = [prompt_key(group) for group in groups]
    counts = Counter(keys)
    part_of: dict[str, int] = {}
    sizes = [0] * number
    for component in _components(keys, [group.origin for group in groups]):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += sum(counts[key] for key in component)
        part_of |= dict.fromkeys(component, smallest)
    if min(sizes) == 0:
        raise DataError(
            f"cannot split {len(counts)} distinct prompts into {number} folds",
            where=groups[0].origin.rpartition(":")[0] or groups[0].origin if groups else "",
            fix="use fewer folds",
        )
    return [[g for g, key in zip(groups, keys, strict=True) if part_of[key] == part] for part in range(number)]


def _components(keys: Sequence[str], origins: Sequence[str]) -> list[list[str]]:
    """Return the sets of prompts that are connected by common rows, in an order that depends only on the prompts."""
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    of_row: dict[str, str] = {}
    for key, origin in zip(keys, origins, strict=True):
        parent[root(key)] = root(of_row.setdefault(origin, key) if origin else key)
    components: dict[str, list[str]] = {}
    for key in sorted(parent):
        components.setdefault(root(key), []).append(key)
    # sorted by a hash of all its hashes: the smallest hash of a component would put large ones first
    return sorted(components.values(), key=lambda c: c[0] if len(c) == 1 else _hash("".join(c)))


def prompt_key(group: PreferenceGroup) -> str:
    """Return a hash of the prompt."""
    return _hash(repr(group.prompt))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def normalised_prompt_key(group: PreferenceGroup) -> str:
    """Return a hash of the prompt that is the same for a text and for that text as a single user message."""
    prompt = group.prompt
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0].role == "user" and not prompt[0].extra:
        prompt = prompt[0].content
    return _hash(repr(prompt))


def refuse_overlap(train: Sequence[PreferenceGroup], held_out: Sequence[PreferenceGroup]) -> None:
    """Raise DataError if a prompt is in both parts, because the evaluation would then measure memorisation."""
    trained = {normalised_prompt_key(g): g.origin for g in train}
    leaks = [g for g in held_out if normalised_prompt_key(g) in trained]
    if leaks:
        raise DataError(
            f"{len(leaks)} of {len(held_out)} evaluation prompts are also in the training data",
            where=leaks[0].origin,
            why=f"the first one is also the prompt of {trained[normalised_prompt_key(leaks[0])]}",
            fix="remove them, hold out a share of the training data (data.eval=0.05), or set data.allow_overlap=true",
        )
