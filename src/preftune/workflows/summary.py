"""What scores come to: accuracy over judgements and, for data with the column `subset`, RewardBench's figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from preftune.chat.render import pieces_of
from preftune.errors import DataError
from preftune.formulas import win
from preftune.measures.rewardbench import SECTIONS, Case, figures
from preftune.measures.win_rate import sides
from preftune.sources.read import read
from preftune.types import Judgement, TokenGroup


@dataclass(frozen=True, slots=True)
class Mark:
    """What RewardBench says about a row, beside its texts."""

    subset: str = ""
    id: str = ""

    def known(self) -> dict[str, str]:
        return {name: value for name, value in (("subset", self.subset), ("id", self.id)) if value}


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A group with log-probs of the tokens of each response, and their rewards: the log-ratio times beta."""

    group: TokenGroup
    policy: Sequence[torch.Tensor]
    reference: Sequence[torch.Tensor]
    rewards: Sequence[torch.Tensor]

    def strings(self, response: int, tokenizer: Any) -> list[str]:
        """What each token adds to the text of the response."""
        return pieces_of(tokenizer, self.group.prompt_ids.tolist(), self.group.response_ids[response].tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A group with the reward of each of its responses; `tokens` if the reward is an implicit one."""

    origin: str
    judgements: Sequence[Judgement]
    rewards: Sequence[float]
    tokens: Tokens | None = None


def marks_of(source: str) -> dict[str, Mark]:
    """Subset and id of the rows that have a subset, by their origin."""
    return {
        row.origin: Mark(str(row.value["subset"]), str(row.value.get("id", "")))
        for row in read(source)
        if row.value.get("subset") not in (None, "")
    }


def summary_of(found: Mapping[str, Sequence[Scored]], marks: Mapping[str, Mark]) -> dict[str, Any]:
    """Figures over judgements of what was written, and over prompts for every way in which they were scored."""
    written = found.get("compatible", found["corrected"])
    margins = np.array([margin_of(one, j) for one in written for j in one.judgements])
    summary: dict[str, Any] = {
        "pairs": len(margins),
        "accuracy": float(np.mean(win(margins))),
        "ties": int(np.sum(margins == 0)),
        "margin": float(np.mean(margins)),
    }
    if marks or len(found) > 1:
        for mode, scored in found.items():
            cases = [case_of(one, marks.get(one.origin, Mark())) for one in scored]
            summary[mode] = figures(cases, published=mode == "compatible")
    return summary


def margin_of(one: Scored, judgement: Judgement) -> float:
    """By how much the response that is likelier the better one is rewarded more; 0 where the label is a tie."""
    decided = sides(judgement)
    return one.rewards[decided[0]] - one.rewards[decided[1]] if decided else 0.0


def case_of(one: Scored, mark: Mark) -> Case:
    """The rewards of a group's responses: those that lose no judgement, and the others."""
    decided = [both for j in one.judgements if (both := sides(j))]
    if not decided:  # labels that are ties: half right, whatever the rewards
        return Case((0.0,), (0.0,), mark.subset, mark.id)
    lost = {worse for _, worse in decided}
    judged = sorted({place for both in decided for place in both})
    if len(lost) == len(judged):
        raise DataError("every response loses a judgement, so none is right", where=one.origin)
    right = tuple(one.rewards[i] for i in judged if i not in lost)
    return Case(right, tuple(one.rewards[i] for i in judged if i in lost), mark.subset, mark.id)


def lines_of(summary: Mapping[str, Any]) -> list[str]:
    """The summary as a table."""
    lines = [
        f"{summary['pairs']} pairs: accuracy {summary['accuracy']:.4f} (a tie is half right), {summary['ties']} ties, "
        f"mean margin {summary['margin']:.4f}"
    ]
    modes = [mode for mode in ("corrected", "compatible") if mode in summary]
    if not modes:
        return lines
    heads = [*modes, "difference"] if len(modes) == 2 else modes
    lines.append(f"{'subset':<34} {'prompts':>7}" + "".join(f"{head:>12}" for head in heads))

    def row(name: str, prompts: str, values: Sequence[float]) -> str:
        shown = [*values, values[1] - values[0]] if len(values) == 2 else values
        return f"{name:<34} {prompts:>7}" + "".join(f"{value:>12.4f}" for value in shown)

    lines.append(row("all", str(summary["corrected"]["prompts"]), [summary[mode]["accuracy"] for mode in modes]))
    subsets = summary["corrected"].get("subsets", {})
    for name, one in subsets.items():
        lines.append(row(name, str(one["prompts"]), [_score(summary[mode], name) for mode in modes]))
    for name in summary["corrected"].get("sections", {}):
        there = [subset for subset in SECTIONS.get(name, {}) if subset in subsets]
        some = f" ({len(there)} of {len(SECTIONS[name])} subsets)" if there else ""
        lines.append(
            row(f"section {name}{some}", "", [summary[mode]["sections"].get(name, math.nan) for mode in modes])
        )
    if summary["corrected"].get("overall") is not None:
        lines.append(row("overall, the mean of the sections", "", [summary[mode]["overall"] for mode in modes]))
    return lines


def _score(figures: Mapping[str, Any], subset: str) -> float:
    found = figures["subsets"].get(subset)
    return math.nan if found is None else float(found["score"])
