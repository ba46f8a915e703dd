"""Select training data from scored responses: pairs, groups with all their judgements, or the best responses.

best-worst    the best response against the worst
best-random   the best response against a different one, drawn with the seed
all           all pairs, with a total weight of 1 per prompt
top-k         the k best responses as demonstrations (rejection sampling, RAFT: Dong et al. 2023, arXiv:2304.06767)
rso           all pairs of responses accepted with probability exp((r - max r) / beta) (statistical rejection sampling:
              Liu et al. 2023, arXiv:2309.06657). Accepted responses are samples of the optimal policy at beta if the
              best response has the highest possible reward. A response accepted k times has k times the weight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

from preftune.errors import ConfigError, did_you_mean
from preftune.formats.values import Drop
from preftune.formulas import generator_of
from preftune.types import Judgement

Selection = Literal["best-worst", "best-random", "all", "top-k", "rso"]
SELECTIONS: tuple[str, ...] = get_args(Selection)


@dataclass(frozen=True, slots=True)
class SelectionOptions:
    """Options of a selection: `k` is for top-k, `beta` for rso, `seed` for best-random and rso.

    `gap` is the minimum difference in score of a pair. `soft` makes sigmoid(difference) the probability of a pair.
    """

    select: Selection = "best-worst"
    gap: float = 0.0
    soft: bool = False
    k: int = 1
    beta: float = 0.1
    seed: int = 0


def selection_options(select: str, gap: float, soft: bool, k: int, beta: float, seed: int) -> SelectionOptions:
    """Create the options. Raises ConfigError for an unknown selection and for an option that it does not use."""
    if select not in SELECTIONS:
        raise ConfigError(f"unknown selection {select!r}; {did_you_mean(select, SELECTIONS)}", where="--select")
    unused = {
        "--k": k != 1 and select != "top-k",
        "--beta": beta != 0.1 and select != "rso",
        "--gap": gap != 0 and select == "top-k",
        "--soft": soft and select == "top-k",
    }
    for name in [name for name, is_unused in unused.items() if is_unused]:
        raise ConfigError(
            f"the option is not used by {select!r}", where=name, fix="remove it, or use a different --select"
        )
    return SelectionOptions(select, gap, soft, k, beta, seed)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Selected:
    """The indices of the selected responses, and the judgements between them (indices into `members`).

    left_out   by reason, the number of responses (without a reward, copies, not accepted) and pairs (ties, below the
               gap) that were not selected
    """

    members: tuple[int, ...]
    judgements: tuple[Judgement, ...]
    left_out: Mapping[str, int]


def select_responses(texts: Sequence[str], scores: Sequence[float], options: SelectionOptions, prompt: str) -> Selected:
    """Select from the responses to one prompt. A score of NaN means no reward. Raises Drop if nothing is selected."""
    scored = [i for i in range(len(texts)) if not math.isnan(scores[i])]
    if not scored:
        raise Drop("no response got a reward")
    drawn = rso_sample(_ranked(scored, scores), scores, options, prompt) if options.select == "rso" else scored
    first = {text: i for i, text in reversed([(i, texts[i]) for i in sorted(drawn)])}  # the first of each text
    times = Counter(first[texts[i]] for i in drawn)
    order = _ranked(first.values(), scores)
    left_out = {
        "without a reward": len(texts) - len(scored),
        "copies": len(drawn) - len(order),
        "not accepted": len(scored) - len(drawn),
    }
    if options.select == "top-k":
        return Selected(tuple(order[: options.k]), (), left_out)
    if len(order) < 2:
        few = "fewer than two different responses" + (" got a reward" if len(scored) < len(texts) else "")
        raise Drop(f"{few} were accepted: a larger beta accepts more" if options.select == "rso" else few)
    pairs = list(combinations(order, 2))
    if options.select == "best-worst":
        pairs = [(order[0], order[-1])]
    elif options.select == "best-random":
        pairs = [(order[0], order[1 + int(generator_of(f"{options.seed} {prompt}").integers(len(order) - 1))])]
    wide = [(b, w) for b, w in pairs if scores[b] - scores[w] > 0 and scores[b] - scores[w] >= options.gap]
    ties = sum(scores[b] == scores[w] for b, w in pairs)
    if not wide:
        raise Drop("all scores are tied" if ties == len(pairs) else f"no pair has a gap of {options.gap:g} or more")
    members = sorted({i for pair in wide for i in pair})
    place = {old: new for new, old in enumerate(members)}
    # a response that was accepted twice counts as two samples of the optimal policy
    weights = [float(times[b] * times[w]) if options.select == "rso" else 1.0 for b, w in wide]
    total = sum(weights) if options.select in ("all", "rso") else 1.0
    judgements = tuple(
        Judgement(place[b], place[w], weight / total, _sigmoid(scores[b] - scores[w]) if options.soft else 1.0)
        for (b, w), weight in zip(wide, weights, strict=True)
    )
    left_out |= {"ties": ties, "below the gap": len(pairs) - ties - len(wide)}
    return Selected(tuple(members), judgements, left_out)


def _ranked(members: Iterable[int], scores: Sequence[float]) -> list[int]:
    """Return the members by descending score; equal scores by index."""
    return sorted(sorted(members), key=lambda i: -scores[i])


def rso_sample(order: Sequence[int], scores: Sequence[float], options: SelectionOptions, prompt: str) -> list[int]:
    """Accept each response with probability exp((score - best score) / beta). The best one is always accepted."""
    best = scores[order[0]]
    numbers = generator_of(f"{options.seed} {prompt}").random(len(order))
    return [i for i, u in zip(order, numbers, strict=True) if u <= math.exp((scores[i] - best) / options.beta)]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
