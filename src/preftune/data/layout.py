"""Token groups -> batches. This file alone knows how groups lie in memory.

    rows     every response is a row [prompt | response], padded on the right to the longest
    packed   the same sequences one after another in a single row, without padding
    shared   [prompt | r1 | r2 | ... | rn]: the prompt once for all responses of its group

The last token of a response is only ever predicted, so no layout gives it a slot. In rows, causal attention never
looks right, so padding needs no mask: no real position can see it. For compiled blocks, packed and shared rows can be
padded to constant lengths; that padding is a segment of its own, which no other sees and nothing reads.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import pad

from preftune.types import Batch, Judged, Packed, Rows, Segment, TokenGroup

LayoutName = Literal["rows", "packed", "shared"]


@dataclass(frozen=True, slots=True)
class Budget:
    """How groups become micro-batches: their layout, and the most token slots of one micro-batch.

    `constant`: packed and shared rows are padded to quarters of `tokens`, so that they have four lengths and no more.
    """

    layout: LayoutName
    tokens: int
    constant: bool = False


def micro_batches(groups: Sequence[TokenGroup], budget: Budget) -> list[Batch]:
    """`groups` as batches of at most `budget.tokens` slots each; a larger single group makes a batch of its own."""
    if budget.layout == "rows":
        bins = _similar(groups, budget.tokens)
    else:
        sizes = [slots_of(group, budget.layout) for group in groups]
        bins = _best_fit(groups, sizes, budget.tokens)
        even = shares(sizes, len(bins))
        if not budget.constant and all(sum(sizes[i] for i in share) <= budget.tokens for share in even):
            bins = [[groups[i] for i in share] for share in even]  # as few, and none larger than it must be
    batches = [batch_of(members, budget.layout) for members in bins]
    return [to_constant_length(batch, budget.tokens) for batch in batches] if budget.constant else batches


def to_constant_length(batch: Batch, tokens: int) -> Batch:
    """A packed or shared batch, padded to the next quarter of `tokens` slots, also beyond `tokens`."""
    assert isinstance(batch.layout, Packed)
    slots, quarter = len(batch.ids_T), -(-tokens // 4)
    length = -(-slots // quarter) * quarter
    more = (min(length, tokens) if slots <= tokens else length) - slots
    if not more:
        return batch
    return replace(
        batch,
        ids_T=pad(batch.ids_T, (0, more)),
        positions_T=pad(batch.positions_T, (0, more)),  # all 0: there may be no more positions than the data need
        layout=Packed((*batch.layout.segments, Segment(slots, slots + more))),
    )


def batch_of(groups: Sequence[TokenGroup], layout: LayoutName) -> Batch:
    """`groups` as one batch."""
    lay: dict[str, Callable[[Sequence[TokenGroup]], Batch]] = {"rows": rows, "packed": packed, "shared": shared}
    return lay[layout](groups)


def slots_of(group: TokenGroup, layout: LayoutName) -> int:
    """Token slots that the group takes alone."""
    prompt, lengths = len(group.prompt_ids), [len(r) - 1 for r in group.response_ids]
    match layout:
        case "rows":
            return len(lengths) * (prompt + max(lengths))
        case "packed":
            return len(lengths) * prompt + sum(lengths)
        case "shared":
            return prompt + sum(lengths)


def _similar(groups: Sequence[TokenGroup], tokens: int) -> list[list[TokenGroup]]:
    """Groups of similar width together: a batch ends when it is full, or a sixteenth of it would be padding."""
    bins: list[list[TokenGroup]] = []
    count = width = padding = 0
    for group in sorted(groups, key=width_of, reverse=True):
        n = len(group.response_ids)
        padding += n * (width - width_of(group))
        if not bins or (count + n) * width > tokens or padding > tokens // 16:
            bins.append([])
            count, width, padding = 0, width_of(group), 0
        bins[-1].append(group)
        count += n
    return bins


def _best_fit(groups: Sequence[TokenGroup], sizes: Sequence[int], tokens: int) -> list[list[TokenGroup]]:
    """Bin packing, best-fit decreasing: each group, the largest first, goes where the least room is left after it."""
    bins: list[list[TokenGroup]] = []
    room: list[tuple[int, int]] = []  # (slots left, number of the bin), ascending
    for index in sorted(range(len(groups)), key=lambda i: -sizes[i]):
        at = bisect.bisect_left(room, (sizes[index], -1))
        if at == len(room):
            left, number = tokens, len(bins)
            bins.append([])
        else:
            left, number = room.pop(at)
        bins[number].append(groups[index])
        bisect.insort(room, (left - sizes[index], number))
    return bins


def shares(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Indices of `costs` in `parts` shares of nearly equal sum: the largest first, each to the share that has least.

    The largest share is at most 4/3 of the best possible (Graham, 1969). Equal costs are told apart by index alone, so
    that every process finds the same shares.
    """
    heap = [(0.0, number) for number in range(parts)]
    found: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        total, number = heapq.heappop(heap)
        found[number].append(index)
        heapq.heappush(heap, (total + costs[index], number))
    return found


def width_of(group: TokenGroup) -> int:
    """Token slots of the group's widest row."""
    return len(group.prompt_ids) + max(len(r) for r in group.response_ids) - 1


def rows(groups: Sequence[TokenGroup]) -> Batch:
    """One padded row a response."""
    responses = [(g.prompt_ids, r) for g in groups for r in g.response_ids]
    width = max(map(width_of, groups))
    ids = np.zeros((len(responses), width), dtype=np.int64)
    read = []
    for row, (prompt, response) in enumerate(responses):
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : len(prompt) + len(response) - 1] = response[:-1]
        first = row * width + len(prompt) - 1  # the slot that predicts the first token
        read.append(np.arange(first, first + len(response)))
    positions = np.tile(np.arange(width), len(responses))
    return _batch(groups, ids.reshape(-1), positions, Rows(len(responses), width), read)


def packed(groups: Sequence[TokenGroup]) -> Batch:
    """One row of whole sequences, one after another."""
    ids, positions, read, segments = [], [], [], []
    begin = 0
    for group in groups:
        prompt = len(group.prompt_ids)
        for response in group.response_ids:
            end = begin + prompt + len(response) - 1
            ids += [group.prompt_ids, response[:-1]]
            positions.append(np.arange(end - begin))
            read.append(np.arange(begin + prompt - 1, end))
            segments.append(Segment(begin, end))
            begin = end
    return _batch(groups, np.concatenate(ids), np.concatenate(positions), Packed(tuple(segments)), read)


def shared(groups: Sequence[TokenGroup]) -> Batch:
    """One row, every prompt once. The last slot of a prompt predicts the first token of all its responses."""
    ids, positions, read, segments = [], [], [], []
    begin = 0
    for group in groups:
        prompt = len(group.prompt_ids)
        ids.append(group.prompt_ids)
        positions.append(np.arange(prompt))
        at = begin + prompt
        for number, response in enumerate(group.response_ids):
            own = len(response) - 1
            ids.append(response[:-1])
            positions.append(np.arange(prompt, prompt + own))
            read.append(np.concatenate([[begin + prompt - 1], np.arange(at, at + own)]))
            if number == 0:
                segments.append(Segment(begin, at + own))
            elif own:
                segments.append(Segment(at, at + own, begin, begin + prompt))
            at += own
        begin = at
    return _batch(groups, np.concatenate(ids), np.concatenate(positions), Packed(tuple(segments)), read)


def _batch(
    groups: Sequence[TokenGroup],
    ids: np.ndarray,
    positions: np.ndarray,
    layout: Rows | Packed,
    read: Sequence[np.ndarray],
) -> Batch:
    """The record, from slots and, for each response, the slots that predict its tokens."""
    return Batch(
        ids_T=torch.from_numpy(ids.astype(np.int64)),
        positions_T=torch.from_numpy(positions.astype(np.int64)),
        layout=layout,
        read_N=torch.from_numpy(np.concatenate(read).astype(np.int64)),
        target_N=torch.from_numpy(np.concatenate([r for g in groups for r in g.response_ids]).astype(np.int64)),
        length_S=torch.tensor([len(r) for g in groups for r in g.response_ids], dtype=torch.int64),
        judged=judged(groups),
        groups=tuple(groups),
    )


def judged(groups: Sequence[TokenGroup]) -> Judged:
    """The judgements, labels and ranks of `groups`, with responses numbered through."""
    judgements, labels, ranks, owners = [], [], [], []
    first = 0
    for index, group in enumerate(groups):
        n = len(group.response_ids)
        judgements += [(first + j.better, first + j.worse, j.weight, j.probability, j.margin) for j in group.judgements]
        labels += list(group.labels or (0,) * n)
        ranks += list(group.ranks or (0.0,) * n)
        owners += [index] * n
        first += n
    table = np.array(judgements, dtype=np.float64).reshape(-1, 5)
    return Judged(
        better_P=torch.from_numpy(table[:, 0].astype(np.int64)),
        worse_P=torch.from_numpy(table[:, 1].astype(np.int64)),
        weight_P=torch.from_numpy(table[:, 2].astype(np.float32)),
        probability_P=torch.from_numpy(table[:, 3].astype(np.float32)),
        margin_P=torch.from_numpy(table[:, 4].astype(np.float32)),
        label_S=torch.tensor(labels, dtype=torch.int64),
        rank_S=torch.tensor(ranks, dtype=torch.float32),
        group_S=torch.tensor(owners, dtype=torch.int64),
    )
