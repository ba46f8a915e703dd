"""Parsers handle rows with arbitrary values."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tests.unit.formats.examples import EXAMPLES, chat

from preftune.data.convert import group_rows
from preftune.formats.parsers import Reading
from preftune.formats.registry import BY_NAME
from preftune.formats.values import BadRow, Drop, drop_empty_responses

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 3, float("inf"), float("nan"), 10**400, "", " ", "x", "a\ud800", [], [[]], ["a", "b"]),
    *({}, {"a": 1}, [1, 2], {"messages": []}, {"role": "assistant", "content": [{"text": 3}]}),
    *(chat(("user", "hi")), [{"role": ["x"], "content": "y"}], [{"from": None, "value": None}]),
    *([{"better": 0, "worse": 1, "margin": None}], [{"better": True, "worse": {}}]),
]


COLUMNS = ("margin", "weight", "probability", "ended", "labels", "ranks", "scores", "score_chosen", "system", "label")


def corrupted(value: Any, rng: random.Random) -> Any:
    """Return `value` with one element removed or replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.7:
        key = rng.choice(sorted(value))
        rest = {k: v for k, v in value.items() if k != key}
        return rest if rng.random() < 0.2 else {**rest, key: corrupted(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], corrupted(value[place], rng), *value[place + 1 :]]
    return rng.choice(VALUES)


@pytest.mark.parametrize("seed", range(len(EXAMPLES)), ids=[f"{i}-{row[0]}" for i, row in enumerate(EXAMPLES)])
def test_a_corrupted_row_gives_valid_groups_or_a_known_error(seed: int) -> None:
    """Every row gives groups that can be written as JSON, or raises BadRow or Drop."""
    name, row, _ = EXAMPLES[seed]
    rng, kinds = random.Random(seed), set()
    for _ in range(500):
        bad = {key: corrupted(value, rng) if rng.random() < 0.4 else value for key, value in row.items()}
        bad |= {key: rng.choice(VALUES) for key in COLUMNS if rng.random() < 0.05}
        reading = Reading(
            pairs=rng.choice(["all", "best-worst", "adjacent"]),
            margin_from_scores=rng.random() < 0.2,
        )
        try:
            groups = [drop_empty_responses(group) for group in BY_NAME[name].parse(bad, reading)]
            for written in group_rows(groups):
                json.dumps(written, allow_nan=False, ensure_ascii=False).encode()
            kinds.add("kept")
        except (BadRow, Drop) as reason:
            kinds.add(type(reason).__name__)
    assert {"kept", "BadRow"} <= kinds
