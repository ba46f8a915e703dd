"""What the demo found, what was to be expected, and the page that shows it."""

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


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the final table."""

    what: str
    expected: str
    found: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Tuned:
    """A policy tuned at `beta`: its point, its implicit rewards of the reference's samples, its metrics lines."""

    beta: float
    point: Point
    implicit_PM: Floats
    reward_PM: Floats
    lines: list[dict[str, Any]]
    texts: list[tuple[str, ...]]

    @property
    def correlation(self) -> float:
        """Of implicit and true reward within each prompt: the loss leaves a constant of the prompt free."""
        implicit, true = (values - values.mean(axis=1, keepdims=True) for values in (self.implicit_PM, self.reward_PM))
        return float(np.corrcoef(implicit.ravel(), true.ravel())[0, 1])

    def curve(self, name: str, split: str = "train") -> list[float]:
        return [line[name] for line in self.lines if line["split"] == split]

    def line(self) -> str:
        p = self.point
        accuracy = self.curve("rewards/accuracies", "eval")[-1]
        return (
            f"beta {self.beta:<5g} true reward {p.reward:+.3f} at KL {p.kl:.3f} nats, "
            f"held-out accuracy {accuracy:.2f}, implicit-true correlation {self.correlation:.2f}"
        )


@dataclass(frozen=True, slots=True)
class Findings:
    """All numbers of a demo."""

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

    def samples(self, n: int) -> Iterator[tuple[str, str, str]]:
        """(prompt, text before, text after) of n prompts spread over the world."""
        for index in range(0, len(self.prompts), max(1, len(self.prompts) // n)):
            yield self.prompts[index], self.before[index][0], self.strongest.texts[index][0]

    def table(self) -> list[Finding]:
        """What theory says, and what came out."""
        first = self.strongest.lines
        step_1 = next(line for line in first if line["step"] == 1 and line["split"] == "train")
        loss, margin = step_1["loss"], step_1["rewards/margins"]
        rows = [
            Finding(
                "SFT: nats of a new review",
                f"above the grammar's own {self.entropy:.2f}, below {1.5 * self.entropy:.2f}",
                f"{self.sft_nats:.2f}",
                self.entropy < self.sft_nats < 1.5 * self.entropy,
            ),
            Finding("margin at step 1", "0 exactly", f"{margin:g}", margin == 0),
            Finding("loss at step 1", f"ln 2 = {math.log(2):.6f}", f"{loss:.6f}", abs(loss - math.log(2)) < 1e-6),
        ]
        for tuned in self.tuned:
            best = optimum_at(self.reward_PM, max(tuned.point.kl, 0.0))
            at_beta = optimum(self.reward_PM, [tuned.beta])[0]
            gain = (tuned.point.reward - self.start.reward) / max(best - self.start.reward, 1e-9)
            noise = 3 * tuned.point.reward_se
            rows.append(
                Finding(
                    f"DPO at beta {tuned.beta:g}: reward (KL)",
                    f"optimum {at_beta.reward:.3f} ({at_beta.kl:.2f}); at this KL at most {best:.3f}",
                    f"{tuned.point.reward:.3f} ({tuned.point.kl:.2f}), {gain:.0%} of the possible gain",
                    self.start.reward < tuned.point.reward < best + noise,
                )
            )
        for point in self.ppo:
            best = optimum_at(self.reward_PM, max(point.kl, 0.0))
            gain = (point.reward - self.start.reward) / max(best - self.start.reward, 1e-9)
            rows.append(
                Finding(
                    f"{point.name}: reward (KL)",
                    f"at this KL at most {best:.3f}",
                    f"{point.reward:.3f} ({point.kl:.2f}), {gain:.0%} of the possible gain",
                    self.start.reward < point.reward < best + 3 * point.reward_se,
                )
            )
        correlation = self.strongest.correlation
        rows.append(Finding("implicit and true reward correlate", "above 0.2", f"{correlation:.2f}", correlation > 0.2))
        return rows


def write_report(out: Path, findings: Findings) -> None:
    """report.html and frontier.json in `out`."""
    every = findings.tuned
    ns = [n for n in (1, 2, 4, 8, 16, 32) if n <= findings.reward_PM.shape[1]]
    lines = {
        "closed-form optimum": [(p.kl, p.reward) for p in optimum(findings.reward_PM, np.geomspace(30, 0.05, 40))],
        "best of n": [(p.kl, p.reward) for p in (best_of_n(findings.reward_PM, n) for n in ns)],
    }
    points = {"SFT": [findings.start], "DPO": [t.point for t in every]}
    if findings.ppo:
        points["PPO"] = findings.ppo
    strongest = findings.strongest
    pairs = list(zip(strongest.reward_PM.ravel().tolist(), strongest.implicit_PM.ravel().tolist(), strict=True))
    heads = [["", "expected", "found", ""]]
    table = [[f.what, f.expected, f.found, "ok" if f.ok else "not as expected"] for f in findings.table()]
    sampled = [
        [prompt, *(f"{text.strip()} ({world.true_reward(text):+.2f})" for text in (before, after))]
        for prompt, before, after in findings.samples(10)
    ]
    write_page(
        out / "report.html",
        "preftune demo",
        [
            Section("Expected and found", table=heads + table),
            Section(
                "Reward against KL",
                "Up and to the left is better. No policy can be above the closed-form optimum. The curve estimates it "
                f"from {findings.reward_PM.shape[1]} samples of the reference for each prompt, corrected for the bias "
                "of so few samples. Its error is about 0.01 in reward, so a point may be above it by that much. "
                "Best of n comes close to it and needs n samples for each answer.",
                figures=[frontier("Frontier", lines, points)],
            ),
            Section(
                "Training",
                "The loss starts at ln 2, where policy and reference are the same. It ends higher than 0 because the "
                "judgements are probabilities, which the best reward model predicts and cannot beat.",
                figures=[
                    loss_curves({f"beta {t.beta:g}": _steps(t, "loss") for t in every}),
                    curves(
                        "Margin of implicit rewards",
                        "margin",
                        {f"beta {t.beta:g}": _steps(t, "rewards/margins") for t in every},
                    ),
                ],
            ),
            Section(
                "Implicit against true reward",
                f"beta log(policy / reference) of the SFT model's own samples, at beta {strongest.beta:g}; "
                f"the correlation within prompts is {strongest.correlation:.2f}.",
                figures=[scatter("Implicit reward", "true reward", "implicit reward", pairs)],
            ),
            Section("Samples before and after", table=[["prompt", "SFT", strongest.point.name], *sampled]),
            Section("Next", code="preftune data check prefs.jsonl\npreftune dpo configs/dpo.yaml"),
        ],
    )


def _steps(tuned: Tuned, name: str) -> Sequence[tuple[float, float]]:
    return [(line["step"], line[name]) for line in tuned.lines if line["split"] == "train"]
