"""The report of the demo, whose world has a true reward, so that its figures are exact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from preftune.demo import world
from preftune.demo.results import NEXT_STEPS, DemoResults, Tuned
from preftune.exact.optimum import estimate_optimum_jackknife
from preftune.formulas import Z95
from preftune.measures.frontier import best_of_n, optimum_at
from preftune.report.figures import bradley_terry, pair_cards
from preftune.report.figures.curves import TRAINING, curves
from preftune.report.figures.drawn_pairs import read_pairs, read_tokens
from preftune.report.figures.frontier import Policy, frontier
from preftune.report.figures.shift import shift
from preftune.report.figures.tilt import tilt
from preftune.report.figures.words import num, percent
from preftune.report.page import Folded, Number, Page, Part, Step, Table, write_page

SHOWN = (0, 33, 66)  # prompts whose samples the frontier shows
WHY = (
    "Find damaged rows, duplicates and bias in your data before you train.",
    "Write a config with every setting and its meaning.",
    "Train. The run folder then has a report like this one.",
)


def write_report(out: Path, results: DemoResults) -> None:
    """Write `out`/report.html."""
    strongest = results.strongest
    folder = out / f"dpo-beta-{strongest.beta:g}"
    points = frontier_points(results)
    reached = next(p for p in points if p.kind == "policy" and p.beta == strongest.beta)
    start = results.start
    gain = (reached.reward - start.reward) / max((reached.best or 0.0) - start.reward, 1e-9)
    displaced = strongest.curve("drift/displaced", "eval")[-1]
    clause = ", and made both responses of most pairs less likely" if displaced > 0.5 else ""
    failed = [check for check in results.checks() if not check.ok]
    page = Page(
        title="preftune demo",
        about=str(out),
        verdict=f"DPO at beta {strongest.beta:g} took {percent(gain)} of the reward its distance can give{clause}.",
        warnings=[f"Not as expected: {c.name} is {c.measured}, expected {c.expected}." for c in failed],
        numbers=[
            Number(
                num(reached.reward, 3),
                f"true reward \u00b1 {num(Z95 * reached.reward_se, 3)}; {num(start.reward, 3)} at the start",
            ),
            Number(
                num(reached.kl),
                f"nats of KL from the SFT model; the closed form allows {num(reached.best or 0, 3)} there",
            ),
            Number(
                percent(displaced), "of the held-out pairs with both responses less likely than under the reference"
            ),
        ],
        steps=[Step(command, why) for command, why in zip(NEXT_STEPS, WHY, strict=True)],
        parts=[*_figures(folder, results, points), *_tables(results)],
    )
    write_page(out / "report.html", page)


def _figures(folder: Path, results: DemoResults, points: Sequence[Policy]) -> list[Part]:
    strongest = results.strongest
    pairs = read_pairs(folder, {"loss": {"name": "sigmoid", "beta": strongest.beta}})
    assert pairs
    data = pair_cards.pair_data(pairs)
    count = results.reward_PM.shape[1]
    measured = f"{strongest.reward_PM.shape[1]} samples of each policy for each of {len(results.prompts)} prompts"
    cards: list[Part] = [
        results.pipeline,
        bradley_terry.of_run(pairs),
        tilt(results.tilt_prompt, results.tilt_responses, results.tilt_drawn),
        pair_cards.landscape(pairs, data),
        pair_cards.gradient(pairs, data),
        pair_cards.by_hand(pairs, world.true_reward),
        frontier(points, curve(results), count, measured, policy_name="DPO"),
        shift(pairs, strongest.lines),
        pair_cards.tokens(pairs, read_tokens(folder)),
        pair_cards.pairs(pairs),
    ]
    lines = {f"beta {tuned.beta:g}": tuned.lines for tuned in results.tuned}
    training = curves(TRAINING, lines)
    return [*cards, *([training] if training else [])]


def frontier_points(results: DemoResults) -> list[Policy]:
    """Return the SFT model, the tuned policies, best of n and the optimum at the trained betas."""
    yardstick, prompts = results.reward_PM, results.prompts
    shown = [index for index in SHOWN if index < len(prompts)]

    def samples(texts: Sequence[Sequence[str]]) -> list[tuple[str, str, float]]:
        return [(prompts[i], texts[i][0].strip(), world.true_reward(texts[i][0])) for i in shown]

    def best(kl: float) -> float:
        return optimum_at(yardstick, max(kl, 0.0))

    start = results.start
    points = [
        Policy("SFT model", "reference", 0.0, start.reward, 0.0, start.reward_se, samples=samples(results.before))
    ]
    for tuned in results.tuned:
        p = tuned.point
        points.append(
            Policy(
                p.name, "policy", p.kl, p.reward, p.kl_se, p.reward_se, beta=tuned.beta, best=best(p.kl),
                samples=samples(tuned.texts),
            )
        )  # fmt: skip
    points += [Policy(p.name, "ppo", p.kl, p.reward, p.kl_se, p.reward_se, best=best(p.kl)) for p in results.ppo]
    texts = results.yardstick_texts
    for n in (n for n in (2, 4, 8, 16) if n <= yardstick.shape[1]):
        p = best_of_n(yardstick, n)
        top = [[max(row[:n], key=world.true_reward)] for row in texts]
        points.append(Policy(p.name, "best", p.kl, p.reward, 0.0, 0.0, n=n, samples=samples(top)))
    rng = np.random.default_rng(0)
    for tuned in results.tuned:
        at = estimate_optimum_jackknife(torch.from_numpy(yardstick), tuned.beta)
        weight = np.exp((yardstick - yardstick.max(1, keepdims=True)) / tuned.beta)
        weight /= weight.sum(1, keepdims=True)
        drawn = [[row[int(rng.choice(len(row), p=weight[i]))]] for i, row in enumerate(texts)]
        name = f"optimum, beta {tuned.beta:g}"
        points.append(Policy(name, "optimum", at.kl, at.reward, beta=tuned.beta, samples=samples(drawn)))
    return points


def curve(results: DemoResults) -> list[tuple[float, float, float, float]]:
    """Return KL, reward, beta and effective samples of the closed-form optimum, from the yardstick's samples."""
    yardstick = torch.from_numpy(results.reward_PM)
    rows = []
    for beta in np.geomspace(30, 0.05, 40):
        at = estimate_optimum_jackknife(yardstick, float(beta))
        rows.append((at.kl, at.reward, float(beta), at.effective))
    return rows


def _tables(results: DemoResults) -> list[Part]:
    strongest: Tuned = results.strongest
    checks = [[c.name, c.expected, c.measured, "ok" if c.ok else "not as expected"] for c in results.checks()]
    texts = [
        text
        for prompt, before, after in results.samples(10)
        for text in ((prompt, f"SFT model: {before}"), (strongest.point.name, after))
    ]
    return [
        Table("Expected and measured", ("", "expected", "measured", ""), checks),
        Folded("Samples before and after", "The true reward is in brackets.", texts),
    ]
