"""The frontier: reward against KL of policies, of best of n, and of the closed-form optimum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.report.figures.words import num, percent
from preftune.report.page import Card

SHOWN_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Policy:
    """A point of the plane.

    kind      reference, policy, ppo, best (best of n) or optimum
    best      the largest reward that is possible at this KL
    samples   (prompt, text, reward) of some responses
    """

    name: str
    kind: str
    kl: float
    reward: float
    kl_se: float = 0.0
    reward_se: float = 0.0
    beta: float | None = None
    n: int | None = None
    best: float | None = None
    samples: Sequence[tuple[str, str, float]] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        numbers = {name: round(getattr(self, name), 5) for name in ("kl", "reward", "kl_se", "reward_se")}
        extra = {name: getattr(self, name) for name in ("beta", "n") if getattr(self, name) is not None}
        best = {} if self.best is None else {"best": round(self.best, 5)}
        samples = [{"prompt": p, "text": t, "reward": round(r, 3)} for p, t, r in self.samples[:SHOWN_SAMPLES]]
        return {"name": self.name, "kind": self.kind, **numbers, **extra, **best, "samples": samples}


def frontier(
    points: Sequence[Policy],
    curve: Sequence[tuple[float, float, float, float]],
    samples: int,
    measured: str,
    reward_name: str = "true reward",
    policy_name: str = "trained policies",
    lines: Sequence[Sequence[int]] = (),
) -> Card:
    """Return the card.

    curve      (KL, reward, beta, effective samples) of the closed-form optimum
    samples    per prompt of the reference, from which the curve and best of n are estimated
    measured   how the policies were measured;  lines   indices of points that belong to one policy
    """
    trained = [index for index, point in enumerate(points) if point.kind in ("policy", "ppo")]
    selected = trained[len(trained) // 2] if trained else 0
    data = {
        "reward_name": reward_name,
        "policy_name": policy_name,
        "points": [point.as_json() for point in points],
        "curve": [[round(x, 5) for x in row] for row in curve],
        "samples": samples,
        "selected": selected,
        "lines": [list(line) for line in lines],
    }
    return Card(
        "frontier",
        "The frontier: reward for distance",
        sentence(points, reward_name),
        "Up is better, left is closer to the reference. Point at a mark, or reach it with Tab and the arrow keys, and "
        "read what it writes.",
        "Policies just below the green line, further right for smaller beta.",
        "A policy far right of another one with the same reward: distance was spent for nothing.",
        f"Measured: {measured}; intervals are 95 %, over prompts. Estimated: the optimum, by reweighting {samples} "
        "samples of the reference per prompt, and best of n from the same samples.",
        data,
        "frontier",
    )


def gain_of(point: Policy, start: Policy | None) -> float | None:
    """Return the share of the possible gain that a policy reached at its KL; None where that is not defined."""
    if start is None or point.best is None or point.best <= start.reward:
        return None
    return (point.reward - start.reward) / (point.best - start.reward)


def sentence(points: Sequence[Policy], reward_name: str) -> str:
    """Return what the policies reached: the middle one's share of the possible gain, and the strongest one."""
    trained = [point for point in points if point.kind in ("policy", "ppo")]
    start = next((point for point in points if point.kind == "reference"), None)
    if not trained:
        return f"The curve shows the largest {reward_name} that is possible at each KL; no policy was measured."
    middle = trained[len(trained) // 2]
    gain = gain_of(middle, start)
    text = f"{middle.name} reaches a {reward_name} of {num(middle.reward)} at {num(middle.kl)} nats"
    if gain is not None:
        text += f", {percent(gain)} of what this distance can give"
    far = max(trained, key=lambda point: point.kl)
    if far is not middle and middle.kl > 0:
        more = "more" if far.reward > middle.reward else "less"
        text += f"; {far.name} has {more} ({num(far.reward)}) for {num(far.kl / middle.kl, 1)} times the distance"
    return f"{text}."


def points_of(rows: Mapping[str, Sequence[Any]], kinds: Mapping[str, str]) -> list[Policy]:
    """Return measured points by the name of their policy as points of the plane."""
    return [
        Policy(p.name, kinds.get(name, "policy"), p.kl, p.reward, p.kl_se, p.reward_se)
        for name, points in rows.items()
        for p in points
    ]
