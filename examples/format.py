"""A custom data format: copy this file, change the function to fit your rows, and set data.format to it.

    preftune data check reviews.jsonl data.format=examples/format.py:stars
    preftune dpo configs/dpo.yaml model.path=MODEL data.train=reviews.jsonl data.format=examples/format.py:stars

The rows of this example have a question, and answers that people gave one to five stars:

    {"question": "Boil an egg?", "answers": [{"text": "Ask a cook.", "stars": 1}, {"text": "8 minutes.", "stars": 5}]}
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

from preftune import Judgement, PreferenceGroup


# `row` is a dict with the columns of one row. Return None for a row without preferences: it is dropped and counted.
# An exception stops the run, and the message names this file and the row.
def stars(row: dict[str, Any]) -> PreferenceGroup | None:
    """Return one group per question: all its responses, and a judgement for each two with different stars."""
    answers = sorted(row["answers"], key=lambda answer: -answer["stars"])
    judgements = tuple(
        # `better` and `worse` are positions in `responses`. A judgement can also have a weight, a probability or a
        # margin, which docs/lookup/losses.md describes. Set a probability or a margin only for a loss that uses it.
        Judgement(better=first, worse=second)
        for first, second in combinations(range(len(answers)), 2)
        if answers[first]["stars"] > answers[second]["stars"]
    )
    if not judgements:
        return None
    return PreferenceGroup(
        prompt=row["question"],
        responses=tuple(answer["text"] for answer in answers),
        judgements=judgements,
    )
