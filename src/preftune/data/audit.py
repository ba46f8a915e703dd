"""What a person should know about preference data before training on it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from preftune.data.groups import asked, prompt_key
from preftune.formats.file_checks import uninformative_verdicts
from preftune.types import PreferenceGroup, TokenGroup, content


@dataclass(frozen=True, slots=True)
class Lengths:
    """Distribution of a length."""

    mean: float
    p10: float
    p50: float
    p90: float
    p99: float
    longest: int

    @staticmethod
    def of(values: Sequence[int]) -> Lengths | None:
        if not values:
            return None
        p10, p50, p90, p99 = np.percentile(values, [10, 50, 90, 99])
        return Lengths(float(np.mean(values)), float(p10), float(p50), float(p90), float(p99), int(max(values)))


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts over groups; lengths are in tokens if the data were tokenised, else in characters.

    chosen_longer        share of judgements whose better response is longer (ties count one half): the accuracy
                         of a judge that only measures length
    repeated_prompts     groups whose prompt occurred before
    repeated_judgements  judgements that occurred before, word for word
    contradictions       pairs of judgements that say the opposite of each other
    leaks                evaluation groups whose prompt is in the training data
    uninformative        why the judgements or labels say nothing about the responses, or ""
    origins              under each of these four names, the file:line of every row that it counts: the repeats, not
                         the first of its kind; both sides of a contradiction; the evaluation rows
    """

    unit: str
    groups: int
    responses: int
    judgements: int
    labelled: int
    prompt: Lengths | None
    chosen: Lengths | None
    rejected: Lengths | None
    response: Lengths | None
    chosen_longer: float | None
    repeated_prompts: int
    repeated_judgements: int
    contradictions: int
    leaks: int | None
    uninformative: str
    origins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def audit(
    groups: Sequence[PreferenceGroup],
    tokens: Sequence[TokenGroup] | None = None,
    held_out: Sequence[PreferenceGroup] | None = None,
) -> Audit:
    """Measure `groups`; with `tokens`, lengths are those of the tokenised groups."""
    if tokens is None:
        prompts = [len(content(g.prompt)) for g in groups]
        responses = [[len(content(r)) for r in g.responses] for g in groups]
        judged = [g.judgements for g in groups]
    else:
        prompts = [len(g.prompt_ids) for g in tokens]
        responses = [[len(r) for r in g.response_ids] for g in tokens]
        judged = [g.judgements for g in tokens]
    pairs = [(r[j.better], r[j.worse]) for r, js in zip(responses, judged, strict=True) for j in js]
    keys = [prompt_key(g) for g in groups]
    known = {asked(g) for g in groups} if held_out else set()
    leaks = [g.origin for g in held_out or () if asked(g) in known]
    prompts_again = _repeats(list(zip(keys, [g.origin for g in groups], strict=True)))
    judged_at = [
        ((key, g.responses[j.better], g.responses[j.worse]), g.origin)
        for key, g in zip(keys, groups, strict=True)
        for j in g.judgements
    ]
    judgements_again = _repeats(judged_at)
    stated = {judgement for judgement, _ in judged_at}
    opposed = [origin for (key, better, worse), origin in judged_at if (key, worse, better) in stated]
    return Audit(
        unit="characters" if tokens is None else "tokens",
        groups=len(prompts),
        responses=sum(map(len, responses)),
        judgements=len(pairs),
        labelled=sum(bool(g.labels) for g in groups),
        prompt=Lengths.of(prompts),
        chosen=Lengths.of([b for b, _ in pairs]),
        rejected=Lengths.of([w for _, w in pairs]),
        response=Lengths.of([n for lengths in responses for n in lengths]),
        chosen_longer=sum((b > w) + 0.5 * (b == w) for b, w in pairs) / len(pairs) if pairs else None,
        repeated_prompts=len(prompts_again),
        repeated_judgements=len(judgements_again),
        contradictions=len(opposed) // 2,
        leaks=None if held_out is None else len(leaks),
        origins={
            "repeated_prompts": _rows(prompts_again),
            "repeated_judgements": _rows(judgements_again),
            "contradictions": _rows(opposed),
            "leaks": _rows(leaks),
        },
        uninformative=_one_sided(groups),
    )


def _one_sided(groups: Sequence[PreferenceGroup]) -> str:
    """Judgements that are all ties, or labels that are all the same."""
    judgements = [j for g in groups for j in g.judgements]
    if judgements and all(j.probability == 0.5 for j in judgements):
        return uninformative_verdicts(0, 0, len(judgements))
    labels = [label for g in groups for label in g.labels]
    if labels and len(set(labels)) == 1:
        side = "desirable" if labels[0] > 0 else "undesirable"
        return (
            f"all {len(labels)} labels are {side}: nothing says which responses are better. Add rows of the other kind"
        )
    return ""


def _repeats(items: Sequence[tuple[Hashable, str]]) -> list[str]:
    """The origins of the items that occurred before."""
    seen: set[Hashable] = set()
    again = []
    for item, origin in items:
        if item in seen:
            again.append(origin)
        seen.add(item)
    return again


def _rows(origins: Sequence[str]) -> tuple[str, ...]:
    """Each row once."""
    return tuple(dict.fromkeys(origins))
