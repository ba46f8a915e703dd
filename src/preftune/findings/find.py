"""Look for every kind of finding in one pass over the groups. Only hashes of the texts are kept."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from preftune.findings import content
from preftune.findings.bias import BiasCounts, properties
from preftune.findings.cycles import inconsistent
from preftune.findings.kinds import Findings
from preftune.findings.similar import (
    SIMILAR,
    Index,
    Shingles,
    bands,
    exact_hash,
    in_place,
    shingles,
    similarity,
    text_hash,
)
from preftune.findings.text import answer_text, last_turn, normalised, prompt_text, split_code
from preftune.types import PreferenceGroup

SIMILAR_RESPONSES = 0.85  # the two responses of a pair
LEAKS_PER_BUCKET = 64
_NUMBER = re.compile(r"\W*\d+\W*")


def find(
    groups: Sequence[PreferenceGroup],
    train: Sequence[PreferenceGroup] = (),
    held_out: Sequence[PreferenceGroup] = (),
) -> Findings:
    """Return the findings in `groups`, and the leaks between `train` and `held_out`."""
    findings = Findings()
    bias, prompts, rows = BiasCounts(), _Prompts(groups), _Rows(groups)
    better, worse, origins = array("Q"), array("Q"), array("q")
    for number, group in enumerate(groups):
        answers = [answer_text(response) for response in group.responses]
        sides = _sides(group)
        for side in sides:
            findings.responses[side] = findings.responses.get(side, 0) + 1
        _look_at_texts(group, answers, sides, findings)
        sets = [shingles(answer) for answer in answers]
        texts = [(len(answer), properties(answer)) for answer in answers]
        prompt = prompt_text(group.prompt)
        hashes = [exact_hash(normalised(prompt), normalised(answer)) for answer in answers]
        for first, second in _pairs(group):
            bias.add(texts[first], texts[second])
            better.append(hashes[first])
            worse.append(hashes[second])
            origins.append(number)
        if any(similarity(sets[first], sets[second]) >= SIMILAR_RESPONSES for first, second in _pairs(group)):
            findings.add("similar-responses", "row", group.origin)
        prompt_sets = shingles(prompt)
        prompts.add(number, group, prompt, prompt_sets, findings)
        rows.add(number, group, [prompt_sets, *sets], findings)
    opposed, cyclic = inconsistent(better, worse)
    for kind, is_listed in (("contradictions", opposed), ("cycles", cyclic)):
        for number in np.unique(np.asarray(origins, dtype=np.int64)[is_listed]).tolist():
            findings.add(kind, "row", groups[number].origin)
    findings.bias.update(bias.result())
    if len(held_out):
        _leaks(train, held_out, findings)
    return findings


def _pairs(group: PreferenceGroup) -> Iterator[tuple[int, int]]:
    """Yield the better and the worse response of each judgement that is not a tie."""
    for judgement in group.judgements:
        if judgement.probability > 0.5:
            yield judgement.better, judgement.worse
        elif judgement.probability < 0.5:
            yield judgement.worse, judgement.better


def _sides(group: PreferenceGroup) -> list[str]:
    """Return the side of each response: chosen, rejected, or response if it has no side or both."""
    won, lost = {b for b, _ in _pairs(group)}, {w for _, w in _pairs(group)}
    if group.labels:
        won |= {i for i, label in enumerate(group.labels) if label > 0}
        lost |= {i for i, label in enumerate(group.labels) if label < 0}
    names = {(True, False): "chosen", (False, True): "rejected"}
    return [names.get((i in won, i in lost), "response") for i in range(len(group.responses))]


def _look_at_texts(group: PreferenceGroup, answers: Sequence[str], sides: Sequence[str], findings: Findings) -> None:
    """Add the findings that need only this group."""
    origin, question = group.origin, last_turn(group.prompt)
    prompt = prompt_text(group.prompt)
    if content.has_encoding_damage(prompt):
        findings.add("encoding", "prompt", origin)
    if _NUMBER.fullmatch(prompt):
        findings.add("bare-prompts", "prompt", origin)
    for answer, side in zip(answers, sides, strict=True):
        prose, unclosed = split_code(answer)
        outside = answer if unclosed else prose
        checks = {
            "refusals": content.is_refusal(answer),
            "unclosed-fences": unclosed,
            "template-tokens": content.has_template_token(outside),
            "role-markers": content.has_role_marker(outside),
            "echoes": content.repeats_prompt(answer, question),
            "encoding": content.has_encoding_damage(answer),
            "html": content.has_html(prose, prompt),
            "loops": content.has_loop(outside),
        }
        for kind, present in checks.items():
            if present:
                findings.add(kind, side, origin)


class _Prompts:
    """Prompts that are similar to an earlier one. Those that are equal to the last character are not listed."""

    def __init__(self, groups: Sequence[PreferenceGroup]) -> None:
        self._groups = groups
        self._equal: set[int] = set()  # hashes of the prompts
        self._first: set[int] = set()  # of the normalised prompts
        self._near: set[int] = set()  # hashes of the prompts that are listed
        self._index = Index()

    def add(self, number: int, group: PreferenceGroup, prompt: str, sets: Shingles, findings: Findings) -> None:
        key = exact_hash(prompt)
        if not prompt or (key in self._equal and key not in self._near):
            return
        if key not in self._near:
            self._equal.add(key)
            if not self._is_near(number, prompt, sets):
                return
            self._near.add(key)
        findings.add("near-duplicate-prompts", "row", group.origin)

    def _is_near(self, number: int, prompt: str, ours: Shingles) -> bool:
        """Return whether an earlier prompt is similar. If not, the prompt becomes one to compare with."""
        key = text_hash(prompt)
        if key in self._first:
            return True
        self._first.add(key)
        places = bands(ours)
        for other in self._index.candidates(places):
            if similarity(ours, shingles(prompt_text(self._groups[other].prompt))) >= SIMILAR:
                return True
        self._index.add(places, number)
        return False


class _Rows:
    """Groups whose prompt and responses are all similar to those of an earlier group, on the same sides."""

    def __init__(self, groups: Sequence[PreferenceGroup]) -> None:
        self._groups = groups
        self._equal: set[int] = set()
        self._index = Index()

    def add(self, number: int, group: PreferenceGroup, sets: Sequence[Shingles], findings: Findings) -> None:
        """Add the group, given the shingles of its prompt and of its responses."""
        texts = _texts(group)
        key = exact_hash(*(f"{place}\0{text}" for place, _, text in texts))
        if key in self._equal:
            findings.add("near-duplicates", "exact", group.origin)
            return
        self._equal.add(key)
        bands_of_all = bands(np.concatenate([in_place(sets[index], place) for place, index, _ in texts]))
        for other in self._index.candidates(bands_of_all):
            theirs = _texts(self._groups[other])
            if [place for place, *_ in theirs] == [place for place, *_ in texts] and all(
                similarity(sets[index], shingles(text)) >= SIMILAR
                for (_, index, _), (*_, text) in zip(texts, theirs, strict=True)
            ):
                findings.add("near-duplicates", "near", group.origin)
                return
        self._index.add(bands_of_all, number)


def _texts(group: PreferenceGroup) -> list[tuple[int, int, str]]:
    """Return the texts of a group in a fixed order, each with the number of its place and its index.

    The prompt has the place 0; better responses, worse responses and others have 1, 2 and 3. The index counts the
    prompt and then the responses as the group has them.
    """
    numbers = {"chosen": 1, "rejected": 2, "response": 3}
    texts = [(numbers[side], answer_text(r)) for side, r in zip(_sides(group), group.responses, strict=True)]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    return [(0, 0, prompt_text(group.prompt)), *((texts[i][0], i + 1, texts[i][1]) for i in order)]


def _leaks(train: Sequence[PreferenceGroup], held_out: Sequence[PreferenceGroup], findings: Findings) -> None:
    """Add the evaluation rows whose prompt is similar to one of the training data, and those training rows."""
    index, equal = Index(LEAKS_PER_BUCKET), dict[int, list[int]]()
    for number, group in enumerate(held_out):
        prompt = prompt_text(group.prompt)
        same = equal.setdefault(text_hash(prompt), [])
        if prompt and not same:
            index.add(bands(shingles(prompt)), number)
        same.append(number)
    equal.pop(text_hash(""), None)
    leaked: set[int] = set()
    is_similar: dict[int, bool] = {}  # hash of a training prompt -> whether it is similar to an evaluation prompt
    for group in train:
        prompt = prompt_text(group.prompt)
        key = text_hash(prompt)
        if prompt and key not in is_similar:
            ours = shingles(prompt)
            similar = set(equal.get(key, ()))
            for number in index.candidates(bands(ours)):
                other = prompt_text(held_out[number].prompt)
                if similarity(ours, shingles(other)) >= SIMILAR:
                    similar.update(equal[text_hash(other)])
            leaked |= similar
            is_similar[key] = bool(similar)
        if is_similar.get(key):
            findings.add("leaks", "training", group.origin)
    for number in sorted(leaked):
        findings.add("leaks", "evaluation", held_out[number].origin)
