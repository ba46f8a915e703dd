"""The results of the demo, and the values that theory predicts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from preftune.demo import world
from preftune.measures.frontier import Floats, Point, optimum, optimum_at
from preftune.report.figures.tilt import Response
from preftune.report.page import Card

NEXT_STEPS = ("preftune data check prefs.jsonl", "preftune init dpo", "preftune dpo dpo.yaml")


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the final table: a measured value and its expected range."""

    name: str
    expected: str
    measured: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Tuned:
    """A policy trained with `beta`: reward and KL, implicit and true rewards of reference samples, metrics, samples."""

    beta: float
    point: Point
    implicit_PM: Floats
    reward_PM: Floats
    lines: list[dict[str, Any]]
    texts: list[tuple[str, ...]]

    @property
    def correlation(self) -> float:
        """Correlation of implicit and true reward within prompts. The loss does not fix a constant per prompt."""
        implicit, true = (values - values.mean(axis=1, keepdims=True) for values in (self.implicit_PM, self.reward_PM))
        return float(np.corrcoef(implicit.ravel(), true.ravel())[0, 1])

    def curve(self, name: str, split: str = "train") -> list[float]:
        return [line[name] for line in self.lines if line["split"] == split]

    def line(self) -> str:
        point = self.point
        accuracy = self.curve("rewards/accuracies", "eval")[-1]
        return (
            f"beta {self.beta:<5g} true reward {point.reward:+.3f} at KL {point.kl:.3f} nats, "
            f"held-out accuracy {accuracy:.2f}, correlation of implicit and true reward {self.correlation:.2f}"
        )


@dataclass(frozen=True, slots=True)
class DemoResults:
    """All results of the demo.

    reward_PM         true rewards of samples of the SFT model, which are used for nothing else: best of n and the
                      closed-form optimum are estimated from them; `yardstick_texts` are their texts
    tilt_responses    responses to `tilt_prompt`, the likeliest of `tilt_drawn` samples for each reward
    """

    prompts: list[str]
    reward_PM: Floats
    yardstick_texts: list[tuple[str, ...]]
    tilt_prompt: str
    tilt_responses: list[Response]
    tilt_drawn: int
    pipeline: Card
    start: Point
    tuned: list[Tuned]
    sft_nats: float
    entropy: float
    before: list[tuple[str, ...]]
    ppo: list[Point]

    @property
    def strongest(self) -> Tuned:
        return min(self.tuned, key=lambda t: t.beta)

    def samples(self, n: int) -> Iterator[list[str]]:
        """Yield prompt, sample before and sample after DPO, with true rewards, for about n prompts, evenly spread."""
        for index in range(0, len(self.prompts), max(1, len(self.prompts) // n)):
            texts = self.before[index][0], self.strongest.texts[index][0]
            yield [self.prompts[index], *(f"{text.strip()} ({world.true_reward(text):+.2f})" for text in texts)]

    def checks(self) -> list[Check]:
        """Compare the results with the values that theory predicts."""
        lines = self.strongest.lines
        step_1 = next(line for line in lines if line["step"] == 1 and line["split"] == "train")
        loss, margin = step_1["loss"], step_1["rewards/margins"]
        rows = [
            Check(
                "SFT: held-out loss in nats per review",
                f"above {self.entropy:.2f} (best possible), below {1.5 * self.entropy:.2f}",
                f"{self.sft_nats:.2f}",
                self.entropy < self.sft_nats < 1.5 * self.entropy,
            ),
            Check("DPO: margin at step 1", "exactly 0", f"{margin:g}", margin == 0),
            Check("DPO: loss at step 1", f"ln 2 = {math.log(2):.6f}", f"{loss:.6f}", abs(loss - math.log(2)) < 1e-6),
        ]
        for tuned in self.tuned:
            at_beta = optimum(self.reward_PM, [tuned.beta])[0]
            rows.append(self._check_reward(tuned.point, f"optimum {at_beta.reward:.3f} ({at_beta.kl:.2f}); "))
        rows += [self._check_reward(point) for point in self.ppo]
        correlation = self.strongest.correlation
        rows.append(
            Check("DPO: correlation of implicit and true reward", "above 0.2", f"{correlation:.2f}", correlation > 0.2)
        )
        return rows

    def _check_reward(self, point: Point, at_beta: str = "") -> Check:
        """Compare the reward of a policy with the best reward that is possible at its KL."""
        best = optimum_at(self.reward_PM, max(point.kl, 0.0))
        gain = (point.reward - self.start.reward) / max(best - self.start.reward, 1e-9)
        return Check(
            f"{point.name}: reward (KL)",
            f"{at_beta}at most {best:.3f} at the measured KL",
            f"{point.reward:.3f} ({point.kl:.2f}), {gain:.0%} of the possible gain",
            self.start.reward < point.reward < best + 3 * point.reward_se,
        )
