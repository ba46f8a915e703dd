"""Audit preference data before training: lengths, duplicates, contradictions and leaks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from preftune.data.split import normalised_prompt_key, prompt_key, text_key
from preftune.formats.file_checks import uninformative_verdicts
from preftune.formulas import win
from preftune.types import PreferenceGroup, TokenGroup, content


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean, percentiles and maximum of a length."""

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
    """Counts over groups. Lengths are in tokens if the data are tokenised, otherwise in characters.

    chosen_longer        share of judgements whose better response is longer (ties count one half): the accuracy
                         of a judge that always prefers the longer response
    repeated_prompts     groups with the prompt of an earlier group
    repeated_judgements  judgements with the prompt and the responses of an earlier judgement
    contradictions       pairs of judgements that prefer opposite responses
    leaks                evaluation groups whose prompt is in the training data
    uninformative        why the judgements or labels do not distinguish the responses, or ""
    origins              for repeated_prompts, repeated_judgements, contradictions and leaks, the "file:line" of every
                         counted row: repeats without the first one, both sides of a contradiction, evaluation rows
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
    """Count and measure `groups`. Lengths are those of `tokens`, the tokenised groups, if given."""
    if tokens is None:
        prompts = [len(content(g.prompt)) for g in groups]
        responses = [[len(content(r)) for r in g.responses] for g in groups]
    else:
        prompts = [len(g.prompt_ids) for g in tokens]
        responses = [[len(r) for r in g.response_ids] for g in tokens]
    judged = [g.judgements for g in (groups if tokens is None else tokens)]
    pairs = [(r[j.better], r[j.worse]) for r, js in zip(responses, judged, strict=True) for j in js]
    keys = [prompt_key(g) for g in groups]
    trained = {normalised_prompt_key(g) for g in groups} if held_out else set()
    leaks = [g.origin for g in held_out or () if normalised_prompt_key(g) in trained]
    repeated_prompts = _repeats(list(zip(keys, [g.origin for g in groups], strict=True)))
    judgements = [
        ((key, hashes[j.better], hashes[j.worse]), g.origin)
        for key, g in zip(keys, groups, strict=True)
        for hashes in ([text_key(response) for response in g.responses],)  # the texts need not stay in memory
        for j in g.judgements
    ]
    repeated_judgements = _repeats(judgements)
    present = {judgement for judgement, _ in judgements}
    opposed = [origin for (key, better, worse), origin in judgements if (key, worse, better) in present]
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
        chosen_longer=sum(float(win(float(b - w))) for b, w in pairs) / len(pairs) if pairs else None,
        repeated_prompts=len(repeated_prompts),
        repeated_judgements=len(repeated_judgements),
        contradictions=len(opposed) // 2,
        leaks=None if held_out is None else len(leaks),
        origins={
            "repeated_prompts": _unique(repeated_prompts),
            "repeated_judgements": _unique(repeated_judgements),
            "contradictions": _unique(opposed),
            "leaks": _unique(leaks),
        },
        uninformative=_why_uninformative(groups),
    )


def _why_uninformative(groups: Sequence[PreferenceGroup]) -> str:
    """Return a message if all judgements are ties or all labels are equal, otherwise ""."""
    judgements = [j for g in groups for j in g.judgements]
    if judgements and all(j.probability == 0.5 for j in judgements):
        return uninformative_verdicts(0, 0, len(judgements))
    labels = [label for g in groups for label in g.labels]
    if labels and len(set(labels)) == 1:
        side = "desirable" if labels[0] > 0 else "undesirable"
        return f"all {len(labels)} labels are {side}, so they do not distinguish responses. Add rows of the other kind"
    return ""


def _repeats(items: Sequence[tuple[Hashable, str]]) -> list[str]:
    """Return the origin of every item that equals an earlier item."""
    seen: set[Hashable] = set()
    repeats = []
    for item, origin in items:
        if item in seen:
            repeats.append(origin)
        seen.add(item)
    return repeats


def _unique(origins: Sequence[str]) -> tuple[str, ...]:
    """Return the origins without duplicates, in order."""
    return tuple(dict.fromkeys(origins))
