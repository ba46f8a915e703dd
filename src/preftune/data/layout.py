"""Split token groups into micro-batches, and arrange each in memory in one of three layouts.

    rows     one row [prompt | response] per response, padded on the right to the longest
    packed   the same sequences one after another in a single row, without padding
    shared   [prompt | r1 | r2 | ... | rn]: the prompt once for all responses of its group

The last token of a response is predicted but never read, so no layout has a slot for it. Rows need no padding mask:
padding is on the right, where causal attention does not look. For compiled blocks on a CPU, packed and shared rows can
be padded to constant lengths. That padding consists of separate segments to which no other token attends.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import pad

from preftune.types import Batch, Judged, Packed, Rows, Segment, TokenGroup

LayoutName = Literal["rows", "packed", "shared"]
PADDING_SEGMENT = 128  # most slots of a padding segment: attention of one long segment would cost more than the data's


@dataclass(frozen=True, slots=True)
class Budget:
    """The layout of micro-batches and their maximum number of token slots.

    `constant`: pad packed and shared rows to a multiple of a quarter of `tokens`, so that there are only four lengths.
    """

    layout: LayoutName
    tokens: int
    constant: bool = False


def micro_batches(groups: Sequence[TokenGroup], budget: Budget) -> list[Batch]:
    """Split `groups` into batches of at most `budget.tokens` slots. A larger group is alone in its batch."""
    if budget.layout == "rows":
        bins = _similar(groups, budget.tokens)
    else:
        sizes = [slots_of(group, budget.layout) for group in groups]
        bins = _best_fit(groups, sizes, budget.tokens)
        even = balanced_shares(sizes, len(bins))
        if not budget.constant and all(sum(sizes[i] for i in share) <= budget.tokens for share in even):
            bins = [[groups[i] for i in share] for share in even]  # as few bins, but of similar size
    batches = [batch_of(members, budget.layout) for members in bins]
    return [to_constant_length(batch, budget.tokens) for batch in batches] if budget.constant else batches


def to_constant_length(batch: Batch, tokens: int) -> Batch:
    """Pad a packed or shared batch to a multiple of a quarter of `tokens` slots, even if it exceeds `tokens`."""
    assert isinstance(batch.layout, Packed)
    slots, quarter = len(batch.ids_T), -(-tokens // 4)
    length = -(-slots // quarter) * quarter
    padding = (min(length, tokens) if slots <= tokens else length) - slots
    if not padding:
        return batch
    return replace(
        batch,
        ids_T=pad(batch.ids_T, (0, padding)),
        positions_T=pad(batch.positions_T, (0, padding)),  # position 0: the model may have no further position
        layout=Packed((*batch.layout.segments, *padding_segments(slots, slots + padding))),
    )


def padding_segments(begin: int, end: int) -> Iterator[Segment]:
    """Yield segments of at most PADDING_SEGMENT slots that fill the slots [begin, end)."""
    for first in range(begin, end, PADDING_SEGMENT):
        yield Segment(first, min(first + PADDING_SEGMENT, end))


def batch_of(groups: Sequence[TokenGroup], layout: LayoutName) -> Batch:
    """Arrange `groups` in one batch."""
    return {"rows": rows, "packed": packed, "shared": shared}[layout](groups)


def slots_of(group: TokenGroup, layout: LayoutName) -> int:
    """Return the number of token slots of a batch with only this group."""
    prompt, lengths = len(group.prompt_ids), [len(r) - 1 for r in group.response_ids]
    match layout:
        case "rows":
            return len(lengths) * (prompt + max(lengths))
        case "packed":
            return len(lengths) * prompt + sum(lengths)
        case "shared":
            return prompt + sum(lengths)


def _similar(groups: Sequence[TokenGroup], tokens: int) -> list[list[TokenGroup]]:
    """Group by width. A batch ends when it is full, or when more than 1/16 of `tokens` would be padding."""
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
    """Bin packing by best-fit decreasing: each group, largest first, goes to the fullest bin that has room for it."""
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


def balanced_shares(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Split the indices of `costs` into `parts` shares of nearly equal sum: largest first, each to the smallest share.

    The largest share is at most 4/3 of the optimum (Graham, 1969). Ties are broken by index, so that every process
    computes the same shares.
    """
    heap = [(0.0, number) for number in range(parts)]
    shares: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        total, number = heapq.heappop(heap)
        shares[number].append(index)
        heapq.heappush(heap, (total + costs[index], number))
    return shares


def width_of(group: TokenGroup) -> int:
    """Return the number of token slots of the group's widest row."""
    return len(group.prompt_ids) + max(len(r) for r in group.response_ids) - 1


def rows(groups: Sequence[TokenGroup]) -> Batch:
    """Arrange groups with one padded row per response."""
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
    """Arrange groups as complete sequences, one after another in a single row."""
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
    """Arrange groups in one row, each prompt once. Its last slot predicts the first token of all its responses."""
    ids, positions, read, segments = [], [], [], []
    begin = 0
    for group in groups:
        prompt = len(group.prompt_ids)
        ids.append(group.prompt_ids)
        positions.append(np.arange(prompt))
        at = begin + prompt
        for number, response in enumerate(group.response_ids):
            size = len(response) - 1
            ids.append(response[:-1])
            positions.append(np.arange(prompt, prompt + size))
            read.append(np.concatenate([[begin + prompt - 1], np.arange(at, at + size)]))
            if number == 0:
                segments.append(Segment(begin, at + size))
            elif size:
                segments.append(Segment(at, at + size, begin, begin + prompt))
            at += size
        begin = at
    return _batch(groups, np.concatenate(ids), np.concatenate(positions), Packed(tuple(segments)), read)


def _batch(
    groups: Sequence[TokenGroup],
    ids: np.ndarray,
    positions: np.ndarray,
    layout: Rows | Packed,
    read: Sequence[np.ndarray],
) -> Batch:
    """Create the batch. `read` holds, for each response, the slots that predict its tokens."""
    read, targets = _scored(groups, read), [ids for g in groups for ids in g.scored_ids]
    return Batch(
        ids_T=torch.from_numpy(ids.astype(np.int64)),
        positions_T=torch.from_numpy(positions.astype(np.int64)),
        layout=layout,
        read_N=torch.from_numpy(np.concatenate(read).astype(np.int64)),
        target_N=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        length_S=torch.tensor([len(ids) for ids in targets], dtype=torch.int64),
        judged=collate_judgements(groups),
        groups=tuple(groups),
    )


def _scored(groups: Sequence[TokenGroup], read: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Return the slots that predict scored tokens."""
    if not any(group.masks for group in groups):
        return read
    masks = [group.masks or (slice(None),) * len(group.response_ids) for group in groups]
    return [slots[mask] for slots, mask in zip(read, (m for group in masks for m in group), strict=True)]


def collate_judgements(groups: Sequence[TokenGroup]) -> Judged:
    """Return the judgements, labels and ranks of `groups`, with responses numbered across all groups."""
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
