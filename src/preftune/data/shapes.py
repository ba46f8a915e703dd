"""The lengths of all groups as arrays, so that planning a run does not have to read the token ids."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from preftune.types import TokenGroup

Ints = npt.NDArray[np.int64]
#: Flags of a group: a judgement has a margin, a probability other than 1, a weight other than 1, a margin not above 0.
MARGIN, PROBABILITY, WEIGHT, NO_MARGIN = 1, 2, 4, 8


def flags_of(group: TokenGroup) -> int:
    """Return what is unusual in the judgements of a group."""
    flags = 0
    for j in group.judgements:
        flags |= MARGIN * (j.margin != 0) | NO_MARGIN * (j.margin <= 0)
        flags |= PROBABILITY * (j.probability != 1) | WEIGHT * (j.weight != 1)
    return flags


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes of G groups with S responses.

    prompt_G      tokens of the prompt
    responses_G   number of responses
    judgements_G  number of judgements
    labelled_G    number of responses with a label other than 0
    flags_G       what is unusual in the judgements: a sum of the constants below
    top_G         the largest token id
    length_S      tokens of each response; those of a group are adjacent
    source_G      number of the source in a mixture
    """

    prompt_G: npt.NDArray[np.int32]
    responses_G: npt.NDArray[np.int32]
    judgements_G: npt.NDArray[np.int32]
    labelled_G: npt.NDArray[np.int32]
    flags_G: npt.NDArray[np.uint8]
    top_G: npt.NDArray[np.int32]
    length_S: npt.NDArray[np.int32]
    source_G: npt.NDArray[np.int16]

    @staticmethod
    def of(groups: Sequence[TokenGroup]) -> Shapes:
        """Return the shapes of `groups`: the stored ones of a TokenFile, otherwise counted."""
        stored = stored_shapes(groups)
        if stored is not None:
            return stored
        tally = Tally()
        for group in groups:
            tally.add(group)
        return tally.shapes()

    def take(self, indices: npt.NDArray[np.integer[Any]]) -> Shapes:
        """Return the shapes of the groups with these indices."""
        counts = self.responses_G[indices].astype(np.int64)
        first = (np.cumsum(self.responses_G, dtype=np.int64) - self.responses_G)[indices]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return Shapes(
            self.prompt_G[indices],
            self.responses_G[indices],
            self.judgements_G[indices],
            self.labelled_G[indices],
            self.flags_G[indices],
            self.top_G[indices],
            self.length_S[np.repeat(first, counts) + within],
            self.source_G[indices],
        )

    def followed_by(self, other: Shapes) -> Shapes:
        """Return the shapes of these groups and then those of `other`."""
        return Shapes(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(Shapes)))

    @property
    def size_G(self) -> Ints:
        """`steps.size_of` of each group."""
        size = np.where(self.judgements_G > 0, self.judgements_G, self.labelled_G)
        return np.where(size > 0, size, self.responses_G).astype(np.int64)

    @property
    def sum_G(self) -> Ints:
        """Tokens of all responses of each group."""
        return self._reduce(np.add)

    @property
    def longest_response_G(self) -> Ints:
        """Tokens of the longest response of each group."""
        return self._reduce(np.maximum)

    @property
    def tokens_G(self) -> Ints:
        """`TokenGroup.tokens` of each group."""
        return self.prompt_G.astype(np.int64) * self.responses_G + self.sum_G

    @property
    def longest_G(self) -> Ints:
        """`TokenGroup.longest` of each group."""
        return self.prompt_G + self.longest_response_G

    def slots_G(self, layout: str) -> Ints:
        """`layout.slots_of` of each group."""
        if layout == "rows":
            return self.responses_G * (self.longest_G - 1)
        copies = self.responses_G if layout == "packed" else 1
        return self.prompt_G.astype(np.int64) * copies + self.sum_G - self.responses_G

    def _reduce(self, function: np.ufunc) -> Ints:
        if not len(self.responses_G):
            return np.zeros(0, dtype=np.int64)
        first = np.cumsum(self.responses_G, dtype=np.int64) - self.responses_G
        return np.asarray(function.reduceat(self.length_S, first, dtype=np.int64))


class Tally:
    """Collects the shapes of groups, one group at a time."""

    def __init__(self) -> None:
        self._counts, self._lengths, self._flags = array("i"), array("i"), array("B")  # five counts per group
        self._sources = array("h")

    def add(self, group: TokenGroup) -> None:
        labelled = sum(label != 0 for label in group.labels)
        top = max(int(ids.max()) for ids in (group.prompt_ids, *group.response_ids))
        self._counts.extend((len(group.prompt_ids), len(group.response_ids), len(group.judgements), labelled, top))
        self._lengths.extend([len(ids) for ids in group.response_ids])
        self._flags.append(flags_of(group))
        self._sources.append(group.source)

    def shapes(self) -> Shapes:
        counts = np.array(self._counts, dtype=np.int32).reshape(-1, 5).T.copy()
        flags, lengths = np.array(self._flags, dtype=np.uint8), np.array(self._lengths, dtype=np.int32)
        prompts, responses, judgements, labelled, top = counts
        sources = np.array(self._sources, dtype=np.int16)
        return Shapes(prompts, responses, judgements, labelled, flags, top, lengths, sources)


def stored_shapes(groups: Sequence[Any]) -> Shapes | None:
    """Return the shapes of groups in a file; None for other groups."""
    stored = getattr(groups, "shapes", None)
    return stored if isinstance(stored, Shapes) else None
