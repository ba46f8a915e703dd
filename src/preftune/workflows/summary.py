"""The summary of scores: accuracy over judgements and, for data with a column `subset`, RewardBench's figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from preftune.chat.render import pieces_of
from preftune.errors import DataError
from preftune.formulas import labelled_margin, win
from preftune.measures.rewardbench import SECTIONS, Case, figures
from preftune.measures.win_rate import sides
from preftune.sources.read import read
from preftune.types import Judgement, TokenGroup, masks_of


@dataclass(frozen=True, slots=True)
class Mark:
    """The columns `subset` and `id` of a RewardBench row, "" if missing."""

    subset: str = ""
    id: str = ""


Marks = Mapping[str, Mark]  # by the origin of a row


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A group with the token log-probs of each response, and the token rewards: beta times the log-ratio."""

    group: TokenGroup
    policy: Sequence[torch.Tensor]
    reference: Sequence[torch.Tensor]
    rewards: Sequence[torch.Tensor]

    def strings(self, response: int, tokenizer: Any) -> list[str]:
        """Return the text that each scored token adds to the response."""
        ids, mask = self.group.response_ids[response], masks_of(self.group)[response]
        pieces = pieces_of(tokenizer, self.group.prompt_ids.tolist(), ids.tolist())
        return [piece for piece, scored in zip(pieces, mask, strict=True) if scored]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A group with the reward of each of its responses, and `tokens` if the reward is implicit."""

    origin: str
    judgements: Sequence[Judgement]
    rewards: Sequence[float]
    tokens: Tokens | None = None


def marks_of(source: str | Sequence[str]) -> dict[str, Mark]:
    """Return the marks of the rows that have a subset, by their origin."""
    return {
        row.origin: Mark(str(row.value["subset"]), str(row.value.get("id", "")))
        for row in read(source)
        if row.value.get("subset") not in (None, "")
    }


def summary_of(by_mode: Mapping[str, Sequence[Scored]], marks: Marks) -> dict[str, Any]:
    """Return figures over the judgements in scores.jsonl, and figures over prompts for each mode of scoring."""
    written = by_mode.get("compatible", by_mode["corrected"])
    margins = np.array([margin_of(group, j) for group in written for j in group.judgements])
    summary: dict[str, Any] = {
        "pairs": len(margins),
        "accuracy": float(np.mean(win(margins))),
        "ties": int(np.sum(margins == 0)),
        "margin": float(np.mean(margins)),
    }
    if marks or len(by_mode) > 1:
        for mode, scored in by_mode.items():
            cases = [case_of(group, marks.get(group.origin, Mark())) for group in scored]
            summary[mode] = figures(cases, published=mode == "compatible")
    return summary


def margin_of(group: Scored, judgement: Judgement) -> float:
    """Return the reward of the response that is better by its label, minus that of the other; 0 for a tied label."""
    margin = group.rewards[judgement.better] - group.rewards[judgement.worse]
    return float(labelled_margin(margin, judgement.probability))


def case_of(group: Scored, mark: Mark) -> Case:
    """Split a group's rewards into those of responses that lose no judgement, and the others."""
    decided = [better_worse for j in group.judgements if (better_worse := sides(j))]
    if not decided:  # all labels are ties, so the prompt counts as half right
        return Case((0.0,), (0.0,), mark.subset, mark.id)
    losers = {worse for _, worse in decided}
    judged = sorted({i for better_worse in decided for i in better_worse})
    if len(losers) == len(judged):
        what = "every response loses a judgement, so no response counts as right"
        raise DataError(what, where=group.origin, fix="remove the row, or the judgements that contradict each other")
    right = tuple(group.rewards[i] for i in judged if i not in losers)
    return Case(right, tuple(group.rewards[i] for i in judged if i in losers), mark.subset, mark.id)


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the summary as lines of a table."""
    lines = [
        f"{summary['pairs']} pairs: accuracy {summary['accuracy']:.4f} (a tie counts as half), {summary['ties']} ties, "
        f"mean margin {summary['margin']:.4f}"
    ]
    modes = [mode for mode in ("corrected", "compatible") if mode in summary]
    if not modes:
        return lines
    heads = [*modes, "difference"] if len(modes) == 2 else modes
    lines.append(f"{'subset':<34} {'prompts':>7}" + "".join(f"{head:>12}" for head in heads))

    def row(name: str, prompts: str, values: Sequence[float]) -> str:
        cells = [*values, values[1] - values[0]] if len(values) == 2 else values
        return f"{name:<34} {prompts:>7}" + "".join(f"{value:>12.4f}" for value in cells)

    lines.append(row("all", str(summary["corrected"]["prompts"]), [summary[mode]["accuracy"] for mode in modes]))
    subsets = summary["corrected"].get("subsets", {})
    for name, subset in subsets.items():
        lines.append(row(name, str(subset["prompts"]), [_score(summary[mode], name) for mode in modes]))
    for name in summary["corrected"].get("sections", {}):
        present = [subset for subset in SECTIONS.get(name, {}) if subset in subsets]
        count = f" ({len(present)} of {len(SECTIONS[name])} subsets)" if present else ""
        scores = [summary[mode]["sections"].get(name, math.nan) for mode in modes]
        lines.append(row(f"section {name}{count}", "", scores))
    if summary["corrected"].get("overall") is not None:
        lines.append(row("overall, the mean of the sections", "", [summary[mode]["overall"] for mode in modes]))
    return lines


def _score(figures: Mapping[str, Any], subset: str) -> float:
    return float(figures["subsets"].get(subset, {}).get("score", math.nan))
