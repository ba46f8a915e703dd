"""Token groups -> batches. This file alone knows how groups lie in memory.

Rows: every response is a row [prompt | response], padded on the right to the longest. The last token of a
response is only ever predicted, so the model does not read it. Causal attention never looks right, so the
padding needs no mask: no real position can see it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from preftune.types import Batch, Judged, Rows, TokenGroup


def rows(groups: Sequence[TokenGroup]) -> Batch:
    """Lay out `groups` as one padded row a response."""
    responses = [(g.prompt_ids, r) for g in groups for r in g.response_ids]
    lengths = np.array([len(r) for _, r in responses], dtype=np.int64)
    reads = np.array([len(p) for p, _ in responses], dtype=np.int64) - 1  # the slot that predicts the first token
    width = int((reads + lengths).max())
    ids = np.zeros((len(responses), width), dtype=np.int64)
    for row, (prompt, response) in enumerate(responses):
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : len(prompt) + len(response) - 1] = response[:-1]
    owner = np.repeat(np.arange(len(responses)), lengths)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Batch(
        ids_T=torch.from_numpy(ids.reshape(-1)),
        positions_T=torch.arange(width).repeat(len(responses)),
        layout=Rows(len(responses), width),
        read_N=torch.from_numpy(owner * width + reads[owner] + place),
        target_N=torch.from_numpy(np.concatenate([r for _, r in responses]).astype(np.int64)),
        length_S=torch.from_numpy(lengths),
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


def width_of(group: TokenGroup) -> int:
    """Token slots of the group's widest row."""
    return len(group.prompt_ids) + max(len(r) for r in group.response_ids) - 1


def micro_batches(groups: Sequence[TokenGroup], tokens: int) -> list[Batch]:
    """`groups` as batches of at most `tokens` slots each; a larger single group makes a batch of its own.

    Groups of similar width share a batch, so that little is padded.
    """
    batches: list[Batch] = []
    current: list[TokenGroup] = []
    count, width = 0, 0
    for group in sorted(groups, key=width_of, reverse=True):
        n = len(group.response_ids)
        if current and (count + n) * width > tokens:
            batches.append(rows(current))
            current, count, width = [], 0, 0
        current.append(group)
        count, width = count + n, max(width, width_of(group))
    if current:
        batches.append(rows(current))
    return batches
