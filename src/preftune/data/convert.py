"""Convert groups to rows of preftune's two formats, for `preftune data convert`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from preftune.types import PreferenceGroup, as_json, plain


def pair_rows(groups: Sequence[PreferenceGroup]) -> Iterator[dict[str, Any]]:
    """Yield one row per judgement, labelled response or demonstration."""
    margins = any(j.margin for group in groups for j in group.judgements)  # in every row, or in none
    for group in groups:
        prompt = as_json(group.prompt)
        for j in group.judgements:
            extra = {"weight": (j.weight, 1.0), "probability": (j.probability, 1.0)}
            yield {
                "prompt": prompt,
                "chosen": as_json(group.responses[j.better]),
                "rejected": as_json(group.responses[j.worse]),
                **{name: value for name, (value, default) in extra.items() if value != default},
                **({"margin": j.margin} if margins else {}),
            }
        if not group.judgements:
            for index, response in enumerate(group.responses):
                row = {"prompt": prompt, "completion": as_json(response)}
                yield {**row, "label": group.labels[index] > 0} if group.labels else row


def group_rows(groups: Sequence[PreferenceGroup]) -> Iterator[dict[str, Any]]:
    """Yield one row per group, with all its fields except the origin."""
    for group in groups:
        yield {
            "prompt": as_json(group.prompt),
            "responses": [as_json(response) for response in group.responses],
            "judgements": [plain(j) for j in group.judgements],
            **({"labels": list(group.labels)} if group.labels else {}),
            **({"ranks": list(group.ranks)} if group.ranks else {}),
            **({"ended": list(group.ended)} if group.ended else {}),
        }
