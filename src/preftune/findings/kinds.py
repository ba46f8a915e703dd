"""The kinds of findings, and the record that collects them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.formats.origins import Origins

#: Each kind with its words in reports.
KINDS = {
    "near-duplicates": "rows that repeat an earlier row, exactly or nearly",
    "near-duplicate-prompts": "prompts that are similar to an earlier prompt, but not equal",
    "similar-responses": "pairs whose two responses are nearly equal",
    "contradictions": "judgements that another row reverses (case and white space ignored)",
    "cycles": "judgements in a cycle (A > B, B > C, C > A)",
    "refusals": "responses that refuse",
    "unclosed-fences": "responses with an unclosed code fence",
    "template-tokens": "responses with a control token of a chat template",
    "role-markers": "responses with a line that begins with a role",
    "echoes": "responses that begin with the prompt",
    "encoding": "texts with encoding damage",
    "html": "responses with HTML outside code",
    "loops": "responses that repeat themselves without end",
    "bare-prompts": "prompts that are only a number",
    "leaks": "rows whose prompt is equal or similar to one of the other split",
}
#: Kinds that are not always a defect: `--write` without `--drop` keeps their rows.
JUDGE_YOURSELF = ("near-duplicate-prompts", "similar-responses", "refusals", "html", "bare-prompts")
DEFAULT_DROP = tuple(kind for kind in KINDS if kind not in JUDGE_YOURSELF)


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` of `total`, and the share with its 95 % Wilson interval. All three are None if the total is 0."""

    count: float
    total: int
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Bias:
    """How often a property occurs in the chosen and in the rejected responses.

    preferred  of the pairs in which exactly one response has the property, those in which the chosen one has it. For
               the property "longer", of the pairs with different lengths, those whose chosen response is the longer
    """

    chosen: Rate | None
    rejected: Rate | None
    preferred: Rate


@dataclass(frozen=True, slots=True)
class Findings:
    """The origins ("file:line") of all findings, by kind and by where in the row they are.

    lines     {kind: {place: origins}}; the place is a side (chosen, rejected, response), "prompt", "exact", "near",
              "training", "evaluation" or "row". A row is listed once per place
    responses {side: number of responses}, to which the counts of a side refer
    bias      {property: Bias}
    """

    lines: dict[str, dict[str, Origins]] = field(default_factory=dict)
    responses: dict[str, int] = field(default_factory=dict)
    bias: dict[str, Bias] = field(default_factory=dict)

    def add(self, kind: str, place: str, origin: str) -> None:
        """Add a finding. The findings of one row must be added in succession."""
        origins = self.lines.setdefault(kind, {}).setdefault(place, Origins())
        if origins.last != origin:
            origins.append(origin)

    def rows(self, kinds: Sequence[str] = tuple(KINDS)) -> set[str]:
        """Return the origins with a finding of one of these kinds. Evaluation rows are left out."""
        chosen = [(place, origins) for kind in kinds for place, origins in self.lines.get(kind, {}).items()]
        return {origin for place, origins in chosen if place != "evaluation" for origin in origins}

    def as_json(self) -> dict[str, Any]:
        """Return {kind: {rows, lines: {place: [origins]}}} for every kind, including those that have none."""
        result = {}
        for kind in KINDS:
            places = {place: list(origins) for place, origins in self.lines.get(kind, {}).items()}
            count = len({origin for origins in places.values() for origin in origins})
            result[kind] = {"rows": count, "lines": places}
        return result
