"""Groups seen as what a loss has values for: pairs, labelled responses or rankings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from preftune.errors import DataError
from preftune.types import PreferenceGroup, TokenGroup


def as_pairs(groups: Sequence[TokenGroup], loss: str) -> list[TokenGroup]:
    """Groups with judgements. Raises DataError for data that have none."""
    for group in groups:
        require_judged(group, loss)
    return list(groups)


def require_judged(group: PreferenceGroup | TokenGroup, loss: str) -> None:
    """Raises DataError for a group that compares nothing."""
    if not group.judgements:
        what = "labelled responses" if group.labels else "demonstrations"
        raise DataError(
            f"{loss!r} compares pairs, but the data hold {what}",
            where=group.origin,
            fix="use loss.name=kto or bco" if group.labels else "train on demonstrations with preftune sft",
        )


def as_labelled(groups: Sequence[TokenGroup], loss: str) -> list[TokenGroup]:
    """Groups whose responses are labelled: as the data say, else winners +1 and losers -1.

    A response of a ranking that both wins and loses has no label and is left out.
    """
    result = []
    for group in groups:
        if group.labels:
            result.append(group)
            continue
        won = {j.better for j in group.judgements}
        lost = {j.worse for j in group.judgements}
        clear = sorted(won ^ lost)
        if not clear:
            raise DataError(f"{loss!r} needs labels, and none follow from these responses", where=group.origin)
        place = {old: new for new, old in enumerate(clear)}
        kept = [j for j in group.judgements if j.better in place and j.worse in place]
        result.append(
            replace(
                group,
                response_ids=tuple(group.response_ids[i] for i in clear),
                judgements=tuple(replace(j, better=place[j.better], worse=place[j.worse]) for j in kept),
                ranks=(),
                labels=tuple(1 if i in won else -1 for i in clear),
            )
        )
    return result


def with_mismatches(groups: Sequence[TokenGroup], loss: str) -> list[TokenGroup]:
    """Every group with one more response, labelled 0: a response of the next group that has another prompt.

    Group i gets response i (modulo their number) of that group, so that chosen and rejected ones take turns. It is cut
    where prompt and response together would be longer than the longest sequence that the groups themselves have.
    Responses that the group already has are skipped. Raises DataError if no other response is left.
    """
    longest = max((len(g.prompt_ids) + max(map(len, g.response_ids)) for g in groups), default=0)
    result = []
    for index, group in enumerate(groups):
        candidates = _of_other_prompts(groups, index, longest - len(group.prompt_ids))
        foreign = next((r for r in candidates if not any(_same(r, own) for own in group.response_ids)), None)
        if foreign is None:
            same_prompt = all(np.array_equal(g.prompt_ids, group.prompt_ids) for g in groups)
            raise DataError(
                f"{loss!r} compares with a response to another prompt, and there is none",
                where=group.origin,
                why="all prompts are the same"
                if same_prompt
                else "every response to another prompt is one of this row's own, word for word",
                fix="use loss.name=bco, or data with several prompts and different responses",
            )
        result.append(replace(group, response_ids=(*group.response_ids, foreign), labels=(*group.labels, 0)))
    return result


def _of_other_prompts(groups: Sequence[TokenGroup], index: int, room: int) -> Iterator[np.ndarray]:
    """The responses of the groups after `index` that have another prompt than it, cut to `room` tokens."""
    prompt = groups[index].prompt_ids
    for step in range(1, len(groups)):
        other = groups[(index + step) % len(groups)]
        if not np.array_equal(other.prompt_ids, prompt):
            number = len(other.response_ids)
            yield from (other.response_ids[(index + i) % number][:room] for i in range(number))


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two responses are equal word for word: one may have lost its EOS, the last token, to truncation."""
    common = min(len(one), len(other))
    return abs(len(one) - len(other)) <= 1 and np.array_equal(one[:common], other[:common])


def as_rankings(groups: Sequence[TokenGroup], loss: str) -> list[TokenGroup]:
    """Groups whose responses have a rank each, all different; a pair is a ranking of two."""
    result = []
    for group in groups:
        ranks = group.ranks
        if not ranks and len(group.response_ids) == 2 and len(group.judgements) == 1:
            ranks = (1.0, 2.0) if group.judgements[0].better == 0 else (2.0, 1.0)
        if len(set(ranks)) != len(group.response_ids) or not ranks:
            raise DataError(
                f"{loss!r} needs a rank for every response, all different; got {list(ranks) or 'none'}",
                where=group.origin,
                fix="remove ties from the rankings, or use a pairwise loss",
            )
        result.append(replace(group, ranks=ranks))
    return result


def require_columns(
    groups: Sequence[TokenGroup], loss: str, inputs: frozenset[str], weighted: bool, log_margin: bool
) -> None:
    """Raises DataError where the judgements say something that the loss would ignore, or lack what it needs."""
    margins = False
    for group in groups:
        for j in group.judgements:
            margins = margins or j.margin != 0
            ignored = {
                "probability": j.probability != 1 and "probability" not in inputs,
                "margin": j.margin != 0 and "margin" not in inputs,
                "weight": j.weight != 1 and not weighted,
            }
            for column, bad in ignored.items():
                if bad:
                    raise DataError(
                        f"{loss!r} has no place for a {column}",
                        where=group.origin,
                        why="it would be ignored without a word",
                        fix=f"use a loss that takes it (docs/losses.md), or set data.ignore=[{column}]",
                    )
            if log_margin and j.margin <= 0:
                raise DataError(f"{loss!r} with log needs margins above 0, got {j.margin}", where=group.origin)
    if "margin" in inputs and not margins:
        raise DataError(
            f"{loss!r} needs a margin for each judgement, and no row has one",
            where=groups[0].origin.rpartition(":")[0],
            fix="add a column `margin`, or set data.margin_from_scores=true for data with scores",
        )
