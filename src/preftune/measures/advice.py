"""Warnings about distribution shift: one text for each metric that passes its threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

Line = Mapping[str, float]

ENOUGH = 16
"""Sampled responses. With fewer, all values but NaN may be noise: of 6 responses, 20 points are one response."""
GAP = 20.0
"""Nats. A response in the data is then e^20 times less likely than the policy's own ones, so training on it teaches
little about them. With 32 prompts the standard error is a few nats."""
KL = 10.0
"""Nats per response. Best of n has a KL of log n - (n - 1)/n, so 10 nats correspond to n = 60,000: more selection than
preference data of the usual size can support."""
CERTAIN = 3.0
"""Standard errors. A KL that is this far above its threshold is reported for fewer than ENOUGH responses, too."""
DISPLACED = 0.5
"""Share of pairs. Above it, chosen and rejected have both become less likely in most pairs."""
FALL = 0.01
"""Nats per token that the chosen responses must also have lost: in the first steps all changes are tiny."""
LENGTH = 1.5
"""Ratio to the first length. The random numbers are the same every time, so 32 responses are enough."""
ENDED = 0.2
"""Drop in the share of responses that end. Its standard error is at most 0.09 with 32 responses."""
REPETITION = 0.15
"""Rise in the share of a response's word pairs that repeat an earlier one."""
DIVERSITY = 0.7
"""Ratio to the first share of distinct word pairs."""

ROSE = 1.0
"""Standard errors of the difference between the last held-out loss and the lowest one, computed as if their rows were
independent. Both use the same rows, so the true error is smaller."""
RISES = 3
"""Evaluations since the lowest loss that each rose above the one before; noise alone rarely does that."""
STEADY = 0.1
"""Share of the usual threshold that such a steady rise must exceed: a converged loss may still rise very slightly."""
ROSE_PER_TOKEN = 0.02
"""Nats per token, for losses per token. They always average over the same tokens, so no standard error is used."""

GENTLER = "Lower optim.lr or raise loss.beta"


def advice(now: Line, first: Line) -> dict[str, str]:
    """Return warnings by subject, from the metrics of an evaluation and of the first one, each with its `step`.

    A metric that was not measured gives no warning. One that is NaN does, because every check is a negation. For fewer
    than ENOUGH sampled responses (`drift/responses`), the only other warning is a KL that is certainly too large.
    """
    is_finite = all(math.isfinite(value) for name, value in now.items() if name.startswith("drift/"))
    if is_finite and now.get("drift/responses", ENOUGH) < ENOUGH:
        certain = now.get("drift/kl", 0.0) - CERTAIN * now.get("drift/kl_se", 0.0) > KL
        return {"kl": _large_kl(now)} if certain else {}
    return {**_about_likelihood(now, first), **_about_samples(now, first)}


def _about_likelihood(now: Line, first: Line) -> dict[str, str]:
    warnings = {}
    gap, gap_before = now.get("drift/gap", 0.0), first.get("drift/gap", 0.0)
    if now["step"] <= 0 and not gap <= GAP:
        warnings["start"] = (
            f"the responses in your data are unlikely under the model before training: gap {gap:.0f} nats (warning "
            f"above {GAP:g}). First train on the chosen responses with preftune sft, or build data from the model's "
            "own samples with preftune iterate."
        )
    limit = GAP + (gap_before if gap_before > GAP else 0.0)  # a gap that was too large must grow by as much again
    if not gap <= limit:
        warnings["gap"] = (
            f"the responses in your data have become unlikely under the model: gap {gap:.0f} nats ({gap_before:.0f} at "
            f"step {first['step']}, warning above {limit:.0f}). Refresh the data with preftune iterate."
        )
    if not now.get("drift/kl", 0.0) <= KL:
        warnings["kl"] = _large_kl(now)
    displaced = now.get("drift/displaced", 0.0)
    if not (displaced <= DISPLACED or now["drift/chosen"] > -FALL):
        warnings["displaced"] = (
            f"chosen and rejected responses have both become less likely than under the reference in {displaced:.0%} "
            f"of the pairs (warning above {DISPLACED:.0%}). Use loss dpop, or add {{name: nll, weight: 0.2}} to the "
            "loss."
        )
    return warnings


def _large_kl(now: Line) -> str:
    kl, error = now["drift/kl"], now["drift/kl_se"]
    return (
        f"the policy has a KL of {kl:.1f} +- {error:.1f} nats per response from the reference (warning above {KL:g}). "
        f"{GENTLER}."
    )


def _about_samples(now: Line, first: Line) -> dict[str, str]:
    warnings, step = {}, first["step"]
    length, before = now.get("drift/tokens", 0.0), first.get("drift/tokens", 0.0)
    if not length <= LENGTH * before:
        warnings["length"] = (
            f"the policy's responses have {length:.0f} tokens on average ({before:.0f} at step {step}, warning above "
            f"{LENGTH:g} times that). Use loss r_dpo or ld_dpo; preftune data check compares lengths in your data."
        )
    ended, before = now.get("drift/ended", 1.0), first.get("drift/ended", 0.0)
    if not ended >= before - ENDED:
        warnings["ended"] = (
            f"only {ended:.0%} of the policy's responses end before the token limit ({before:.0%} at step {step}, "
            f"warning after a drop of {100 * ENDED:.0f} points). Check with preftune data check --model whether "
            f"responses in your data lost their EOS. {GENTLER}."
        )
    repeated, before = now.get("drift/repetition", 0.0), first.get("drift/repetition", 1.0)
    if not repeated <= before + REPETITION:
        warnings["repetition"] = (
            f"{repeated:.0%} of a response's word pairs are repeated ({before:.0%} at step {step}, warning after a "
            f"rise of {100 * REPETITION:.0f} points). {GENTLER}, or keep an earlier evaluation (best.metric)."
        )
    distinct, before = now.get("drift/diversity", 1.0), first.get("drift/diversity", 0.0)
    if not distinct >= DIVERSITY * before:
        warnings["diversity"] = (
            f"only {distinct:.0%} of the word pairs in all responses are distinct ({before:.0%} at step {step}, "
            f"warning below {DIVERSITY:g} times that). {GENTLER}."
        )
    return warnings


def held_out_rose(lines: Sequence[Line]) -> str:
    """Return a warning if the last held-out loss is above the lowest one by more than noise, else "".

    lines   the evaluations of a run in order, each with `step` and `loss`, and with `loss_se` if it was computed
    """
    if len(lines) < 2:
        return ""
    last, best = lines[-1], min(lines, key=lambda line: line["loss"])
    rise = last["loss"] - best["loss"]
    if "loss_se" in last and "loss_se" in best:
        error = math.hypot(last["loss_se"], best["loss_se"])
        threshold, amount = ROSE * error, f"{rise:.3g} +- {error:.2g}"
    else:
        threshold, amount = ROSE_PER_TOKEN, f"{rise:.3g}"
    since = [line["loss"] for line in lines[lines.index(best) :]]
    steady = len(since) > RISES and all(after > before for before, after in pairwise(since))
    if rise <= (STEADY * threshold if steady else threshold):
        return ""
    better = (
        "The model before training was better on these rows."
        if best["step"] == 0
        else f"The model at step {best['step']} was better on these rows; best=loss keeps it (docs/do/training.md)."
    )
    return (
        f"the held-out loss rose by {amount}, from {best['loss']:.4g} at step {best['step']} to {last['loss']:.4g} at "
        f"step {last['step']}. {better} Use fewer epochs (train.epochs, train.max_steps) or a lower optim.lr."
    )
