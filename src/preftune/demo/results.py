"""The results of the demo, the values that theory predicts, and the HTML report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preftune.demo import world
from preftune.measures.frontier import Floats, Point, best_of_n, optimum, optimum_at
from preftune.report.figures import curves, frontier, loss_curves, scatter
from preftune.report.page import Section, write_page

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
    """All results of the demo."""

    prompts: list[str]
    reward_PM: Floats
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


def write_report(out: Path, results: DemoResults) -> None:
    """Write `out`/report.html."""
    ns = [n for n in (1, 2, 4, 8, 16, 32) if n <= results.reward_PM.shape[1]]
    lines = {
        "closed-form optimum": [(p.kl, p.reward) for p in optimum(results.reward_PM, np.geomspace(30, 0.05, 40))],
        "best of n": [(p.kl, p.reward) for p in (best_of_n(results.reward_PM, n) for n in ns)],
    }
    points = {"SFT": [results.start], "DPO": [t.point for t in results.tuned]}
    if results.ppo:
        points["PPO"] = results.ppo
    losses = {f"beta {t.beta:g}": _steps(t, "loss") for t in results.tuned}
    margins = {f"beta {t.beta:g}": _steps(t, "rewards/margins") for t in results.tuned}
    strongest = results.strongest
    pairs = list(zip(strongest.reward_PM.ravel().tolist(), strongest.implicit_PM.ravel().tolist(), strict=True))
    table = [["", "expected", "measured", ""]]
    table += [[c.name, c.expected, c.measured, "ok" if c.ok else "not as expected"] for c in results.checks()]
    sections = [
        Section("Expected and measured", table=table),
        Section(
            "Reward against KL",
            "Points further up and to the left are better. No policy can be above the closed-form optimum. The "
            f"curve estimates the optimum from {results.reward_PM.shape[1]} samples of the reference per prompt, "
            "with a correction for the bias of the small sample. Its error is about 0.01 in reward, so a point may "
            "be above the curve by that much. Best of n is close to the optimum, but needs n samples per response.",
            figures=[frontier("Frontier", lines, points)],
        ),
        Section(
            "Training",
            "The loss starts at ln 2, because policy and reference are equal at first. It stays above 0, because "
            "the labels are probabilities: even a perfect model of the true reward has a loss above 0.",
            figures=[loss_curves(losses), curves("Margin of implicit rewards", "margin", margins)],
        ),
        Section(
            "Implicit against true reward",
            f"The implicit reward is beta * log(policy / reference), here at beta {strongest.beta:g} for samples "
            f"of the SFT model. The correlation within prompts is {strongest.correlation:.2f}.",
            figures=[scatter("Implicit reward", "true reward", "implicit reward", pairs)],
        ),
        Section("Samples before and after", table=[["prompt", "SFT", strongest.point.name], *results.samples(10)]),
        Section("Next steps with your own data", code="\n".join(NEXT_STEPS)),
    ]
    write_page(out / "report.html", "preftune demo", sections)


def _steps(tuned: Tuned, name: str) -> Sequence[tuple[float, float]]:
    return [(line["step"], line[name]) for line in tuned.lines if line["split"] == "train"]
