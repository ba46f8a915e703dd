"""Convert groups to the items of a loss: pairs, labelled responses or rankings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from preftune.data.derive import derived
from preftune.data.shapes import MARGIN, NO_MARGIN, PROBABILITY, WEIGHT, Shapes
from preftune.errors import DataError
from preftune.types import PreferenceGroup, TokenGroup, masks_of


def as_pairs(groups: Sequence[TokenGroup], loss: str) -> Sequence[TokenGroup]:
    """Return the groups. Raises DataError for a group without judgements."""
    unjudged = np.flatnonzero(Shapes.of(groups).judgements_G == 0)
    if len(unjudged):
        require_judged(groups[int(unjudged[0])], loss)
    return groups


def require_judged(group: PreferenceGroup | TokenGroup, loss: str) -> None:
    """Raise DataError for a group without judgements."""
    if not group.judgements:
        what = "labelled responses" if group.labels else "demonstrations"
        raise DataError(
            f"{loss!r} needs preference pairs, but the data contain {what}",
            where=group.origin,
            fix="use loss.name=kto or bco" if group.labels else "use preftune sft to train on demonstrations",
        )


def as_labelled(groups: Sequence[TokenGroup], loss: str) -> Sequence[TokenGroup]:
    """Return groups with labels: those of the data, otherwise +1 for better and -1 for worse responses.

    A response that is better in one judgement and worse in another has no label and is left out.
    """
    return derived(groups, "labelled", partial(_labelled, loss=loss))


def _labelled(groups: Sequence[TokenGroup], loss: str) -> Iterator[TokenGroup]:
    for group in groups:
        if group.labels:
            yield group
            continue
        better = {j.better for j in group.judgements}
        worse = {j.worse for j in group.judgements}
        clear = sorted(better ^ worse)
        if not clear:
            what = f"{loss!r} needs labels, and this row has no better or worse response"
            raise DataError(what, where=group.origin, fix="remove the row, or one of its contradicting judgements")
        place = {old: new for new, old in enumerate(clear)}
        judgements = [j for j in group.judgements if j.better in place and j.worse in place]
        yield group.with_only(
            clear,
            judgements=tuple(replace(j, better=place[j.better], worse=place[j.worse]) for j in judgements),
            ranks=(),
            labels=tuple(1 if i in better else -1 for i in clear),
        )


def with_mismatches(groups: Sequence[TokenGroup], loss: str) -> Sequence[TokenGroup]:
    """Add to every group one response, labelled 0, of the next group that has a different prompt.

    Group i gets response i (modulo the number of responses), so that chosen and rejected ones alternate. The response
    is truncated so that no sequence is longer than the longest one in the groups. Responses that the group already has
    are skipped. Raises DataError if there is no other response.
    """
    return derived(groups, "mismatched", partial(_mismatched, loss=loss))


def _mismatched(groups: Sequence[TokenGroup], loss: str) -> Iterator[TokenGroup]:
    longest = int(Shapes.of(groups).longest_G.max(initial=0))
    for index, group in enumerate(groups):
        candidates = _of_other_prompts(groups, index, longest - len(group.prompt_ids))
        foreign = next((r for r in candidates if not any(_same(r[0], own) for own in group.response_ids)), None)
        if foreign is None:
            same_prompt = all(np.array_equal(g.prompt_ids, group.prompt_ids) for g in groups)
            raise DataError(
                f"{loss!r} needs a response to a different prompt, and there is none",
                where=group.origin,
                why="all prompts are the same"
                if same_prompt
                else "every response to a different prompt is identical to a response of this row",
                fix="use loss.name=bco, or data with several prompts and different responses",
            )
        ids, mask = foreign
        masks = (*masks_of(group), mask) if group.masks or not mask.all() else ()
        yield replace(group, response_ids=(*group.response_ids, ids), labels=(*group.labels, 0), masks=masks)


def _of_other_prompts(
    groups: Sequence[TokenGroup], index: int, max_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the responses of groups after `index` with a different prompt, with their masks.

    They are truncated to `max_tokens` tokens. Those without a scored token are skipped.
    """
    prompt = groups[index].prompt_ids
    for offset in range(1, len(groups)):
        other = groups[(index + offset) % len(groups)]
        if not np.array_equal(other.prompt_ids, prompt):
            number, masks = len(other.response_ids), masks_of(other)
            for place in ((index + i) % number for i in range(number)):
                mask = masks[place][:max_tokens]
                if mask.any():
                    size = int(np.flatnonzero(mask)[-1]) + 1
                    yield other.response_ids[place][:size], mask[:size]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two responses are equal, except that one may have lost its EOS, the last token, to truncation."""
    common = min(len(one), len(other))
    return abs(len(one) - len(other)) <= 1 and np.array_equal(one[:common], other[:common])


def as_rankings(groups: Sequence[TokenGroup], loss: str) -> Sequence[TokenGroup]:
    """Return groups with a different rank for every response. A pair becomes a ranking of two."""
    return derived(groups, "ranked", partial(_ranked, loss=loss))


def _ranked(groups: Sequence[TokenGroup], loss: str) -> Iterator[TokenGroup]:
    for group in groups:
        ranks = group.ranks
        if not ranks and len(group.response_ids) == 2 and len(group.judgements) == 1:
            ranks = (1.0, 2.0) if group.judgements[0].better == 0 else (2.0, 1.0)
        if len(set(ranks)) != len(group.response_ids) or not ranks:
            raise DataError(
                f"{loss!r} needs a different rank for every response, got {list(ranks) or 'none'}",
                where=group.origin,
                fix="remove ties from the rankings, or use a pairwise loss",
            )
        yield replace(group, ranks=ranks)


def require_columns(
    groups: Sequence[TokenGroup], loss: str, inputs: frozenset[str], weighted: bool, log_margin: bool
) -> None:
    """Raise DataError if judgements have a field that the loss ignores, or lack the margin that it needs."""
    flags_G = Shapes.of(groups).flags_G
    refused = (
        MARGIN * ("margin" not in inputs)
        | PROBABILITY * ("probability" not in inputs)
        | WEIGHT * (not weighted)
        | NO_MARGIN * log_margin
    )
    wrong = np.flatnonzero(flags_G & refused)
    if len(wrong):
        _refuse_columns(groups[int(wrong[0])], loss, inputs, weighted, log_margin)
    margins = bool((flags_G & MARGIN).any())
    if "margin" in inputs and not margins:
        raise DataError(
            f"{loss!r} needs a margin for each judgement, and no row has one",
            where=groups[0].origin.rpartition(":")[0],
            fix="add a column `margin`, or set data.margin_from_scores=true if the data have scores",
        )


def _refuse_columns(group: TokenGroup, loss: str, inputs: frozenset[str], weighted: bool, log_margin: bool) -> None:
    """Raise DataError for the first judgement of a group that the loss cannot use."""
    for j in group.judgements:
        ignored = {
            "probability": j.probability != 1 and "probability" not in inputs,
            "margin": j.margin != 0 and "margin" not in inputs,
            "weight": j.weight != 1 and not weighted,
        }
        for column, is_ignored in ignored.items():
            if is_ignored:
                raise DataError(
                    f"the data have a {column}, which {loss!r} does not use",
                    where=group.origin,
                    why="it would be ignored",
                    fix=f"use a loss with this input (see docs/lookup/losses.md), or set data.ignore=[{column}]",
                )
        if log_margin and j.margin <= 0:
            what = f"{loss!r} with log needs margins above 0, got {j.margin}"
            raise DataError(what, where=group.origin, fix="remove the row, or set loss.log=false")
