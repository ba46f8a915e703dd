"""What to do about a policy that moves away from its data: a sentence for every figure beyond its threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

Line = Mapping[str, float]

GAP = 20.0
"""Nats. A response of the data is e^20 times less likely than what the policy writes: what is learnt from the one says
little about the other. The standard error with 32 prompts is a few nats."""
KL = 10.0
"""Nats a response. The best of n samples of the reference is log n - (n - 1)/n away, here n = 60,000: further than
preference data of the usual size can tell good from bad."""
DISPLACED = 0.5
"""Share of pairs. Most of the data have become less likely, chosen and rejected alike."""
FALL = 0.01
"""Nats a token by which the chosen responses must have fallen too: the first steps move pairs by next to nothing."""
LENGTH = 1.5
"""Times the first length. The random numbers are the same every time, so 32 responses are enough."""
ENDED = 0.2
"""Fall of the share of responses that end, whose standard error is 0.09 at most with 32 of them."""
REPETITION = 0.15
"""Rise of the share of a response's word pairs that it has had before."""
DIVERSITY = 0.7
"""Times the first share of distinct word pairs."""

ROSE = 1.0
"""Standard errors of the difference between the last held-out loss and the lowest one, as if they were of different
rows. They are of the same rows, so the true error is smaller."""
RISES = 3
"""Evaluations in a row since the lowest one, each above the one before: noise goes up and down."""
STEADY = 0.1
"""Share of the usual threshold that such a rise must exceed: a loss that has settled may creep up by very little."""
ROSE_PER_TOKEN = 0.02
"""Nats per token, for losses per token: their mean is over the same tokens every time, so they need no error."""

GENTLER = "lower optim.lr or raise loss.beta"


def advice(now: Line, first: Line) -> dict[str, str]:
    """Sentences by their subject, from the figures of an evaluation and of the first one, each with its `step`.

    A figure that was not measured gives none.
    """
    found = {
        "start": _far_at_once(now),
        "gap": _left_the_data(now, first),
        "kl": _left_the_reference(now),
        "displaced": _displaced(now),
        "length": _longer(now, first),
        "ended": _endless(now, first),
        "repetition": _repeating(now, first),
        "diversity": _uniform(now, first),
    }
    return {subject: sentence for subject, sentence in found.items() if sentence}


def _far_at_once(now: Line) -> str:
    gap = now.get("drift/gap", 0.0)
    if now["step"] > 0 or gap <= GAP:
        return ""
    return (
        f"the data is {gap:.0f} nats from what the policy writes before its first step (advice from {GAP:g} on): "
        "tune it on the chosen responses with preftune sft, or make data of its own with preftune iterate"
    )


def _left_the_data(now: Line, first: Line) -> str:
    """Data that were far away from the beginning must be further by as much again."""
    gap, before = now.get("drift/gap", 0.0), first.get("drift/gap", 0.0)
    limit = GAP + (before if before > GAP else 0.0)
    if gap <= limit:
        return ""
    return (
        f"the data is {gap:.0f} nats from what the policy now writes ({before:.0f} at step {first['step']}, "
        f"advice from {limit:.0f} on): refresh it with preftune iterate"
    )


def _left_the_reference(now: Line) -> str:
    kl = now.get("drift/kl", 0.0)
    if kl <= KL:
        return ""
    error = now["drift/kl_se"]
    return (
        f"the policy is {kl:.1f} +- {error:.1f} nats a response from the reference (advice from {KL:g} on): {GENTLER}"
    )


def _displaced(now: Line) -> str:
    share = now.get("drift/displaced", 0.0)
    if share <= DISPLACED or now["drift/chosen"] > -FALL:
        return ""
    return (
        f"in {share:.0%} of the pairs both responses are less likely than under the reference (advice from "
        f"{DISPLACED:.0%} on): hold the chosen ones with loss dpop, or add {{name: nll, weight: 0.2}} to the loss"
    )


def _longer(now: Line, first: Line) -> str:
    length, before = now.get("drift/tokens", 0.0), first.get("drift/tokens", 0.0)
    if length <= LENGTH * before:
        return ""
    return (
        f"the policy's responses have {length:.0f} tokens ({before:.0f} at step {first['step']}, advice from "
        f"{LENGTH:g} times as many on): use loss r_dpo or ld_dpo; preftune data check compares the data's lengths"
    )


def _endless(now: Line, first: Line) -> str:
    ended, before = now.get("drift/ended", 1.0), first.get("drift/ended", 0.0)
    if ended >= before - ENDED:
        return ""
    return (
        f"only {ended:.0%} of the policy's responses end ({before:.0%} at step {first['step']}, advice from "
        f"{ENDED:.0%} less on): look with preftune data check --model for responses that lost their EOS, {GENTLER}"
    )


def _repeating(now: Line, first: Line) -> str:
    repeated, before = now.get("drift/repetition", 0.0), first.get("drift/repetition", 1.0)
    if repeated <= before + REPETITION:
        return ""
    return (
        f"{repeated:.0%} of a response's word pairs are repeated ({before:.0%} at step {first['step']}, advice from "
        f"{REPETITION:.0%} more on): take an earlier checkpoint (train.save_every), {GENTLER}"
    )


def _uniform(now: Line, first: Line) -> str:
    distinct, before = now.get("drift/diversity", 1.0), first.get("drift/diversity", 0.0)
    if distinct >= DIVERSITY * before:
        return ""
    return (
        f"only {distinct:.0%} of the word pairs in all responses are distinct ({before:.0%} at step {first['step']}, "
        f"advice below {DIVERSITY:g} times that): {GENTLER}"
    )


def held_out_rose(lines: Sequence[Line]) -> str:
    """What to do about a held-out loss that ended above its minimum by more than noise, or "".

    `lines`: the evaluations of a run in their order, each with `step` and `loss`, and `loss_se` where it is known.
    """
    if len(lines) < 2:
        return ""
    last, best = lines[-1], min(lines, key=lambda line: line["loss"])
    rise = last["loss"] - best["loss"]
    if "loss_se" in last and "loss_se" in best:
        error = math.hypot(last["loss_se"], best["loss_se"])
        threshold, how = ROSE * error, f"by {rise:.3g} +- {error:.2g}"
    else:
        threshold, how = ROSE_PER_TOKEN, f"by {rise:.3g}"
    since = [line["loss"] for line in lines[lines.index(best) :]]
    steady = len(since) > RISES and all(after > before for before, after in pairwise(since))
    if rise <= (STEADY * threshold if steady else threshold):
        return ""
    earlier = (
        "the model before training was better on these rows"
        if best["step"] == 0
        else f"the model of step {best['step']} was better on these rows (train.save_every keeps it)"
    )
    return (
        f"the held-out loss rose {how}: it is {last['loss']:.4g} at step {last['step']}, and was {best['loss']:.4g} at "
        f"step {best['step']}. So {earlier}: use fewer epochs (train.epochs, train.max_steps) or a lower optim.lr"
    )
