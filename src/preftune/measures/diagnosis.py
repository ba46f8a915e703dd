"""Signs that a run learns nothing, or something other than the preferences: one text with cause and remedy for each.

Each threshold has a reason next to it. tests/unit/measures/test_diagnosis.py has a case just inside and just outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from preftune.types import TokenGroup

Line = Mapping[str, float]

SILENT = 3
"""Training lines in a row with a gradient of exactly 0. A single one can be a batch of saturated pairs."""
UNMOVED_STEPS = 50
"""Steps, at least, before the margin counts: shorter runs are trials, and the rate may still be warming up."""
UNMOVED = 1e-3
"""Mean absolute margin of the last LINES lines. A loss of ln 2 - 0.0005 is no training."""
LINES = 5
SEPARATED_STEPS = 20
"""Steps within which no preference data that people have judged are learned completely."""
SEPARATED_PAIRS = 24
"""Pairs in the lines that were all right. With an accuracy of 0.8, 24 right ones in a row have a chance of 0.5 %."""
ONE_SIDED = 0.95
"""Share of pairs in which the same response (chosen or rejected) is longer. In human data it is 0.5 to 0.65, in data
of model judges up to 0.8."""
BOTH_ORDERS = 0.5
"""Share of pairs that occur in both orders. Some judges contradict each other; whole files should not."""
FEW = 30
"""Pairs below which a share of them says little."""
HACKED = 0.8
"""Correlation of reward and length in the samples of PPO, together with a growth of GROWN."""
GROWN = 1.5


@dataclass(frozen=True, slots=True)
class PairFacts:
    """Counts over pairs: how many there are, in which the chosen (rejected) response is longer, and in both orders."""

    pairs: int
    chosen_longer: int
    rejected_longer: int
    both_orders: int


def pair_facts(groups: Iterable[TokenGroup]) -> PairFacts:
    """Count over the judgements of the groups. Two responses are the same pair if their prompt and token ids are."""
    chosen = rejected = pairs = 0
    orders: dict[tuple[int, int, int], int] = {}
    for group in groups:
        prompt = hash(group.prompt_ids.tobytes())
        texts = [hash(ids.tobytes()) for ids in group.response_ids]
        for judgement in group.judgements:
            first, second = judgement.better, judgement.worse
            longer = len(group.response_ids[first]) - len(group.response_ids[second])
            pairs, chosen, rejected = pairs + 1, chosen + (longer > 0), rejected + (longer < 0)
            low, high = sorted((texts[first], texts[second]))
            key = (prompt, low, high)
            orders[key] = orders.get(key, 0) | (1 if texts[first] == low else 2)
    contradicted = {key for key, order in orders.items() if order == 3}
    return PairFacts(pairs, chosen, rejected, 2 * len(contradicted))


def about_pairs(facts: PairFacts) -> dict[str, str]:
    """Return warnings about the pairs of a data set."""
    warnings = {}
    if facts.pairs >= FEW and facts.both_orders > BOTH_ORDERS * facts.pairs:
        warnings["both orders"] = (
            f"{min(facts.both_orders, facts.pairs)} of {facts.pairs} pairs occur in both orders, so their judgements "
            "cancel and the loss cannot fall below ln 2. Probably chosen and rejected were exchanged in a part of the "
            "data. preftune data check lists the rows."
        )
    different = facts.chosen_longer + facts.rejected_longer
    longest = max(facts.chosen_longer, facts.rejected_longer)
    if different >= FEW and longest > ONE_SIDED * different:
        which = "chosen" if facts.chosen_longer == longest else "rejected"
        remedy = "Use loss r_dpo or ld_dpo, or balance the lengths" if which == "chosen" else "Balance the lengths"
        warnings["one length"] = (
            f"the {which} response is longer in {longest / different:.0%} of the pairs of different length, so the "
            f"policy can lower the loss by length alone. {remedy}; preftune data check shows the distribution."
        )
    return warnings


def about_training(lines: Sequence[Line], pairs_per_step: int) -> dict[str, str]:
    """Return warnings from the training lines of a run so far, each with `step`, `lr` and `grad_norm`."""
    warnings: dict[str, str] = {}
    last = lines[-SILENT:]
    if len(last) == SILENT and all(line["grad_norm"] == 0 for line in last):
        warnings["no gradient"] = (
            f"the gradient was exactly 0 in the steps {last[0]['step']:g} to {last[-1]['step']:g}, so nothing is "
            "learned. The loss is saturated (lower loss.beta), chosen and rejected are the same tokens, or no "
            "trained weight affects the responses (lora.targets)."
        )
    elif about := _unmoved(lines):
        warnings["no change"] = about
    pairs, until = _separated(lines, pairs_per_step)
    if pairs >= SEPARATED_PAIRS:
        warnings["too easy"] = (
            f"the last {pairs:g} pairs up to step {until:g} were all told apart before the policy had seen them. "
            "Something simpler than the preference separates them: length, an ending, a "
            "format, or responses of two different models. preftune data check measures length and format."
        )
    return warnings


def _separated(lines: Sequence[Line], pairs_per_step: int) -> tuple[float, float]:
    """Return the number of pairs that were all right at the end of the early steps, and the last of these steps."""
    steps = [0.0, *(line["step"] for line in lines)]  # a line covers the steps after the line before it
    early = [i for i, line in enumerate(lines) if line["step"] <= SEPARATED_STEPS and line.get("epoch", 0) < 1]
    pairs = 0.0
    for i in reversed(early):
        if lines[i].get("rewards/accuracies") != 1:
            break
        pairs += (steps[i + 1] - steps[i]) * pairs_per_step
    return pairs, lines[early[-1]]["step"] if early else 0.0


def _unmoved(lines: Sequence[Line]) -> str:
    last = lines[-LINES:]
    margins = [abs(line["rewards/margins"]) for line in last if "rewards/margins" in line]
    if len(margins) < LINES or last[-1]["step"] < UNMOVED_STEPS or np.mean(margins) >= UNMOVED:
        return ""
    return (
        f"after {last[-1]['step']:g} steps the mean margin is still {np.mean(margins):.1e}: the policy has hardly "
        f"moved. The learning rate is too small (optim.lr was {max(line['lr'] for line in lines):.1e}); optim.lr=auto "
        "uses the usual one for the method and the adapter."
    )


def about_rewards(lines: Sequence[Line]) -> dict[str, str]:
    """Return a warning if a policy raises its reward by length, from training lines of PPO.

    Uses `objective/score` and `responses/tokens`: means over the responses of a step.
    """
    rows = np.array([(line["objective/score"], line["responses/tokens"]) for line in lines], dtype=float).reshape(-1, 2)
    if len(rows) < 2 * LINES:
        return {}
    before, after = rows[:LINES].mean(0), rows[-LINES:].mean(0)
    if after[0] <= before[0] or after[1] < GROWN * before[1] or min(rows.std(0)) == 0:
        return {}
    correlation = float(np.corrcoef(rows.T)[0, 1])
    if correlation < HACKED:
        return {}
    return {
        "reward by length": (
            f"the reward rises together with the length of the responses ({before[1]:.0f} to {after[1]:.0f} tokens, "
            f"correlation {correlation:.2f}). The policy may exploit a preference of the reward model for length. "
            "Compare win rates with length control (preftune eval length-controlled), or raise the KL coefficient."
        )
    }


def about_weights(changed: float, dtype: str) -> dict[str, str]:
    """Return a warning if saving has rounded nearly all updates away. `changed` is the share of weights that differ."""
    if changed > 0.01:
        return {}
    return {
        "rounded away": (
            f"only {changed:.2%} of the saved weights differ from those before training: {dtype} rounds most updates "
            "away. Raise optim.lr, train more steps, or train with lora, whose weights are saved in fp32."
        )
    }
