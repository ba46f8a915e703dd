"""From scored responses to what is trained on: pairs, groups with all their judgements, or the best responses alone.

best-worst    the best response against the worst
best-random   the best against another, drawn by the seed
all           every pair, each prompt with a total weight of 1
top-k         the k best as demonstrations (rejection sampling, RAFT: Dong et al. 2023, arXiv:2304.06767)
rso           responses accepted with probability exp((r - max r) / beta), which are samples of the optimal policy
              at beta as far as the best of them is its best (statistical rejection sampling: Liu et al. 2023,
              arXiv:2309.06657), every pair of them; one that was accepted k times weighs as k
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from preftune.errors import ConfigError, did_you_mean
from preftune.formats.values import Drop
from preftune.types import Judgement

Selection = Literal["best-worst", "best-random", "all", "top-k", "rso"]
SELECTIONS: tuple[str, ...] = ("best-worst", "best-random", "all", "top-k", "rso")


@dataclass(frozen=True, slots=True)
class Selecting:
    """How responses are chosen. `gap`: least difference in score of a pair; `soft`: sigmoid(difference) as label."""

    select: Selection = "best-worst"
    gap: float = 0.0
    soft: bool = False
    k: int = 1
    beta: float = 0.1
    seed: int = 0


def selecting(select: str, gap: float, soft: bool, k: int, beta: float, seed: int) -> Selecting:
    """The options of a selection. Raises ConfigError for an unknown one, and for an option that it does not use."""
    if select not in SELECTIONS:
        raise ConfigError(f"unknown selection {select!r}; {did_you_mean(select, SELECTIONS)}", where="--select")
    useless = {
        "--k": k != 1 and select != "top-k",
        "--beta": beta != 0.1 and select != "rso",
        "--gap": gap != 0 and select == "top-k",
        "--soft": soft and select == "top-k",
    }
    for name in [name for name, given in useless.items() if given]:
        raise ConfigError(f"means nothing to {select}", where=name, fix="leave it out, or use another --select")
    return Selecting(select, gap, soft, k, beta, seed)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Indices of the responses that are kept, and the judgements between them (numbered as they are kept).

    left_out   what was not taken, by reason: responses without a reward, copies of a response, ties, pairs below the
               gap, responses not accepted
    """

    members: tuple[int, ...]
    judgements: tuple[Judgement, ...]
    left_out: Mapping[str, int]


def choose(texts: Sequence[str], scores: Sequence[float], how: Selecting, prompt: str) -> Chosen:
    """What is kept of one prompt's responses; a score of NaN is none. Raises Drop with the reason if nothing is."""
    every = [i for i in range(len(texts)) if not math.isnan(scores[i])]
    if not every:
        raise Drop("no response got a reward")
    drawn = accepted(_ranked(every, scores), scores, how, prompt) if how.select == "rso" else every
    first = {text: i for i, text in reversed([(i, texts[i]) for i in sorted(drawn)])}  # the first of each text
    times = Counter(first[texts[i]] for i in drawn)
    order = _ranked(first.values(), scores)
    left_out = {
        "without a reward": len(texts) - len(every),
        "copies": len(drawn) - len(order),
        "not accepted": len(every) - len(drawn),
    }
    if how.select == "top-k":
        return Chosen(tuple(order[: how.k]), (), left_out)
    if len(order) < 2:
        few = "fewer than two different responses" + (" got a reward" if len(every) < len(texts) else "")
        raise Drop(f"{few} were accepted: a larger beta accepts more" if how.select == "rso" else few)
    pairs = list(combinations(order, 2))
    if how.select == "best-worst":
        pairs = [(order[0], order[-1])]
    elif how.select == "best-random":
        pairs = [(order[0], order[1 + int(_random(how, prompt).integers(len(order) - 1))])]
    far = [(b, w) for b, w in pairs if scores[b] - scores[w] > 0 and scores[b] - scores[w] >= how.gap]
    ties = sum(scores[b] == scores[w] for b, w in pairs)
    if not far:
        raise Drop("all scores are tied" if ties == len(pairs) else f"no gap of {how.gap:g} or more")
    members = sorted({i for pair in far for i in pair})
    place = {old: new for new, old in enumerate(members)}
    # a response that was accepted twice stands for two samples of the optimal policy
    weights = [float(times[b] * times[w]) if how.select == "rso" else 1.0 for b, w in far]
    total = sum(weights) if how.select in ("all", "rso") else 1.0
    judgements = tuple(
        Judgement(place[b], place[w], weight / total, _sigmoid(scores[b] - scores[w]) if how.soft else 1.0)
        for (b, w), weight in zip(far, weights, strict=True)
    )
    return Chosen(tuple(members), judgements, {**left_out, "ties": ties, "below the gap": len(pairs) - ties - len(far)})


def _ranked(members: Iterable[int], scores: Sequence[float]) -> list[int]:
    """The best first; equal ones as they come."""
    return sorted(sorted(members), key=lambda i: -scores[i])


def accepted(order: Sequence[int], scores: Sequence[float], how: Selecting, prompt: str) -> list[int]:
    """Each response with probability exp((its score - the best score) / beta); the best one always."""
    best = scores[order[0]]
    numbers = _random(how, prompt).random(len(order))
    return [i for i, u in zip(order, numbers, strict=True) if u <= math.exp((scores[i] - best) / how.beta)]


def _random(how: Selecting, prompt: str) -> np.random.Generator:
    """Random numbers of a prompt that do not depend on the others."""
    key = int.from_bytes(hashlib.sha256(f"{how.seed} {prompt}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
