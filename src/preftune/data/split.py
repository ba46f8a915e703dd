"""Split groups by prompt: hold out a share, make folds, and refuse prompts that are in both files.

Prompts are compared by their SHA-256, in arrays with one row per group, so that a large data set needs little memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preftune.data.subset import subset
from preftune.data.text_file import TextFile
from preftune.errors import DataError
from preftune.types import PreferenceGroup, Text

Bytes32 = npt.NDArray[np.void]  # one SHA-256 per item
Mask = npt.NDArray[np.bool_]


def hold_out(
    groups: Sequence[PreferenceGroup], share: float
) -> tuple[Sequence[PreferenceGroup], Sequence[PreferenceGroup]]:
    """Split the groups by prompt and return (train, held out), with about `share` of the prompts held out.

    The hash of a prompt decides. No prompt and no row is on both sides, so all turns of a dialogue stay together.
    """
    held = held_out_mask(groups, share)
    return subset(groups, np.flatnonzero(~held)), subset(groups, np.flatnonzero(held))


def held_out_mask(groups: Sequence[PreferenceGroup], share: float) -> Mask:
    """Return whether each group is held out by `hold_out`."""
    prompts = _Prompts.of(groups)
    number = len(prompts.keys)
    target, held, count = max(1, round(share * number)), np.zeros(number, dtype=bool), 0
    smallest: npt.NDArray[np.int64] | None = None
    for component in prompts.components():
        if smallest is None or len(component) < len(smallest):
            smallest = component
        if count + len(component) <= target:
            held[component] = True
            count += len(component)
        if count == target:
            break
    if not count and smallest is not None:
        held[smallest] = True
        count = len(smallest)
    if count == number:
        same = f"all {len(groups)} groups have the same {'' if len(groups) and groups[0].prompt else '(empty) '}prompt"
        raise DataError(
            "cannot hold out a share of the prompts",
            where=groups[0].origin.rpartition(":")[0] or groups[0].origin if len(groups) else "",
            why="all prompts are connected by common rows, and a row cannot be split" if count > 1 else same,
            fix="set data.eval to an evaluation file",
        )
    return np.asarray(held[prompts.key_G])


def folds(groups: Sequence[PreferenceGroup], number: int) -> list[Sequence[PreferenceGroup]]:
    """Split the groups into `number` parts of similar size, by prompt as in `hold_out`. Raises DataError."""
    prompts = _Prompts.of(groups)
    counts = np.bincount(prompts.key_G, minlength=len(prompts.keys))
    part_of = np.zeros(len(prompts.keys), dtype=np.int64)
    sizes = [0] * number
    for component in prompts.components():
        smallest = sizes.index(min(sizes))
        sizes[smallest] += int(counts[component].sum())
        part_of[component] = smallest
    if min(sizes) == 0:
        raise DataError(
            f"cannot split {len(prompts.keys)} distinct prompts into {number} folds",
            where=groups[0].origin.rpartition(":")[0] or groups[0].origin if len(groups) else "",
            fix="use fewer folds",
        )
    part_G = part_of[prompts.key_G]
    return [subset(groups, np.flatnonzero(part_G == part)) for part in range(number)]


@dataclass(frozen=True, slots=True)
class _Prompts:
    """The distinct prompts of G groups.

    keys    their hashes, in ascending order
    key_G   the index in `keys` of each group's prompt
    row_G   the row of each group: equal numbers for equal origins, negative without an origin
    """

    keys: Bytes32
    key_G: npt.NDArray[np.int64]
    row_G: npt.NDArray[np.int64]

    @staticmethod
    def of(groups: Sequence[PreferenceGroup]) -> _Prompts:
        hashes = bytearray()
        rows = np.empty(len(groups), dtype=np.int64)
        for index, (prompt, origin) in enumerate(_prompts(groups)):
            hashes += _digest(prompt)
            rows[index] = _row_number(origin)
        keys, key_G = _distinct(bytes(hashes))
        return _Prompts(keys, key_G, rows)

    def components(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the sets of prompts that are connected by common rows, in an order that depends only on the prompts."""
        joined = self._joined()
        rank: dict[int, bytes] = {}
        for root, members in joined.items():  # a hash of all hashes: the smallest one would put large sets first
            rank[root] = _sha256("".join(self.keys[i].tobytes().hex() for i in members).encode())
        inside = {member for members in joined.values() for member in members}
        several = iter(sorted(joined, key=lambda root: rank[root]))
        following = next(several, None)
        for index, key in enumerate(self.keys):
            while following is not None and rank[following] < key.tobytes():
                yield np.array(joined[following])
                following = next(several, None)
            if index not in inside:
                yield np.array([index])
        while following is not None:
            yield np.array(joined[following])
            following = next(several, None)

    def _joined(self) -> dict[int, list[int]]:
        """Return the sets of at least two prompts that are connected by common rows, each in ascending order."""
        parent: dict[int, int] = {}

        def root(key: int) -> int:
            while parent.setdefault(key, key) != key:
                parent[key] = parent[parent[key]]
                key = parent[key]
            return key

        order = np.argsort(self.row_G, kind="stable")
        rows, keys = self.row_G[order], self.key_G[order]
        linked = (rows[1:] == rows[:-1]) & (rows[1:] >= 0) & (keys[1:] != keys[:-1])
        for place in np.flatnonzero(linked):
            parent[root(int(keys[place + 1]))] = root(int(keys[place]))
        components: dict[int, list[int]] = {}
        for key in sorted(parent):
            components.setdefault(root(key), []).append(key)
        return components


def _prompts(groups: Sequence[PreferenceGroup]) -> Iterator[tuple[Text, str]]:
    """Yield the prompt and the origin of each group."""
    if isinstance(groups, TextFile):
        return groups.prompts()
    return ((group.prompt, group.origin) for group in groups)


def _row_number(origin: str) -> int:
    """Return 63 bits of a hash of the origin, or -1 without one."""
    data = origin.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> 1 if origin else -1


def _distinct(hashes: bytes) -> tuple[Bytes32, npt.NDArray[np.int64]]:
    """Return the distinct hashes in ascending order, and the index of each item's hash."""
    words = np.frombuffer(hashes, dtype=">u8").reshape(-1, 4)
    order = np.lexsort(words.T[::-1])
    is_new = np.ones(len(words), dtype=bool)
    is_new[1:] = (words[order][1:] != words[order][:-1]).any(axis=1)
    index_of = np.empty(len(words), dtype=np.int64)
    index_of[order] = np.cumsum(is_new) - 1
    return np.frombuffer(hashes, dtype="V32")[order[is_new]], index_of


def prompt_key(group: PreferenceGroup) -> str:
    """Return a hash of the prompt."""
    return text_key(group.prompt)


def text_key(text: Text) -> str:
    """Return a hash of a prompt or response."""
    return _digest(text).hex()


def _digest(prompt: Text) -> bytes:
    return _sha256(_text(prompt).encode("utf-8", "surrogatepass"))


def _text(prompt: Text) -> str:
    """Return `repr(prompt)`. Written out for chats, because the `repr` of a data class is slow."""
    if isinstance(prompt, str):
        return repr(prompt)
    messages = [f"Message(role={m.role!r}, content={m.content!r}, extra={m.extra!r})" for m in prompt]
    return f"({messages[0]},)" if len(messages) == 1 else f"({', '.join(messages)})"


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def normalised_prompt_key(group: PreferenceGroup) -> str:
    """Return a hash of the prompt that is the same for a text and for that text as a single user message."""
    return _digest(_normalised(group.prompt)).hex()


def _normalised(prompt: Text) -> Text:
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0].role == "user" and not prompt[0].extra:
        return prompt[0].content
    return prompt


def refuse_overlap(train: Sequence[PreferenceGroup], held_out: Sequence[PreferenceGroup]) -> None:
    """Raise DataError if a prompt is in both parts, because the evaluation would then measure memorisation."""

    def keys(groups: Sequence[PreferenceGroup]) -> bytes:
        return b"".join(_digest(_normalised(prompt)) for prompt, _ in _prompts(groups))

    _, index_of = _distinct(keys(train) + keys(held_out))
    trained = np.full(len(index_of), -1, dtype=np.int64)
    trained[index_of[: len(train)]] = np.arange(len(train))  # the last group with this prompt
    leaks = np.flatnonzero(trained[index_of[len(train) :]] >= 0)
    if len(leaks):
        first = int(leaks[0])
        source = train[int(trained[index_of[len(train) + first]])]
        raise DataError(
            f"{len(leaks)} of {len(held_out)} evaluation prompts are also in the training data",
            where=held_out[first].origin,
            why=f"the first one is also the prompt of {source.origin}",
            fix="remove them, hold out a share of the training data (data.eval=0.05), or set data.allow_overlap=true",
        )
