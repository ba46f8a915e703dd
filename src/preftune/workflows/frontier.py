"""preftune eval frontier: reward and KL of many policies at many temperatures, on the plane with what is possible.

policy             mean reward and sequence KL(policy || reference) of fresh samples, with 95 % intervals over prompts
best of n          from samples of the reference, KL exact
optimum            the closed form, by importance weights over the same samples
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preftune.chat.open import ChatOptions, renderer_of
from preftune.chat.render import Renderer
from preftune.config.schema import DataConfig, ModelConfig
from preftune.data.prompts import Prompt, read_prompts
from preftune.errors import ConfigError, require_writable
from preftune.exact.optimum import tilt
from preftune.files import write_json
from preftune.lifecycle.data import prompts_that_fit
from preftune.lifecycle.policy import compute_dtype, device_of, require_same_vocabulary
from preftune.lifecycle.saved import chat_record_of, find_policy, open_policy
from preftune.lifecycle.sections import UNLIMITED, max_dropped_of, options_of, require_rows, rows_of, section_of
from preftune.measures.frontier import Floats, Point, best_of_n, beta_at, measure, optimum, optimum_at, tempered
from preftune.model import load
from preftune.model.generate import Sampled, Sampling, sample
from preftune.model.logprobs import Scorer
from preftune.report.figures import frontier
from preftune.report.page import Section, write_page
from preftune.rewards.open import open_reward
from preftune.rewards.reward import Reward, require_rewards, responses_of
from preftune.scoring import response_logps
from preftune.train.display import Display

NS = (1, 2, 4, 8, 16, 32, 64, 128)
Z95 = 1.96


@dataclass(frozen=True, slots=True)
class FrontierOptions:
    """What is compared, on what. `settings` is a whole data section; it takes the place of chat_template and chat."""

    reference: str
    policies: tuple[str, ...]
    prompts: str
    reward: str
    temperatures: tuple[float, ...] = (1.0,)
    samples: int = 8
    yardstick: int = 128
    max_new_tokens: int = 64
    max_prompts: int | None = None
    seed: int = 0
    dtype: str = "auto"
    chat_template: str | None = None
    chat: ChatOptions = field(default_factory=ChatOptions)
    settings: DataConfig | None = None

    @property
    def section(self) -> DataConfig:
        """The settings under which the rows are read."""
        return section_of(self.prompts, self.settings, chat_template=self.chat_template)

    @property
    def options(self) -> ChatOptions:
        """How chat is rendered."""
        return options_of(self.settings, self.chat)


@dataclass(frozen=True, slots=True)
class Asking:
    """The prompts, and how answers to them are sampled and rewarded."""

    prompts: Sequence[Prompt]
    tokenizer: Any
    reward: Reward
    max_new_tokens: int

    def draw(self, model: Any, n: int, temperature: float, seed: int) -> list[Sampled]:
        sampling = Sampling(n, self.max_new_tokens, temperature, seed=seed)
        return sample(model, self.tokenizer, [p.ids.tolist() for p in self.prompts], sampling)

    def rewards(self, drawn: Sequence[Sampled], when: str) -> Floats:
        """(P, M)"""
        return require_rewards(self.reward, responses_of(self.prompts, drawn), when).reshape(len(self.prompts), -1)


def run(wanted: FrontierOptions, out: Path, display: Display) -> dict[str, list[Point]]:
    """Write frontier.json and frontier.html below `out`, show the table, and return the points of every series."""
    if not all(0 < t < 100 for t in wanted.temperatures):
        raise ConfigError(
            "temperatures lie above 0 and below 100", where="--temperatures", why="greedy decoding is no distribution"
        )
    if wanted.dtype not in ("auto", *load.DTYPES):
        raise ConfigError(f"unknown precision {wanted.dtype!r}", where="--dtype", fix="use auto, fp32 or bf16")
    require_writable(out)
    for path in wanted.policies:
        find_policy(path, "--policy")
    dtype = compute_dtype(ModelConfig(path=wanted.reference, dtype=wanted.dtype))  # type: ignore[arg-type]
    device = device_of(None)
    reward = open_reward(wanted.reward, "--reward", device=device)
    opened = open_policy(wanted.reference, "--reference", dtype, device)
    trained = next(filter(None, (chat_record_of(path, "--policy") for path in wanted.policies)), {})
    renderer = renderer_of(opened.source, wanted.section.chat_template, wanted.options, record=trained)
    tokenizer = renderer.tokenizer
    asking = Asking(_prompts(wanted, renderer, opened.model.config, display), tokenizer, reward, wanted.max_new_tokens)
    reference = Scorer.of(opened.model)
    with display.stage("frontier", 1 + len(wanted.policies) * len(wanted.temperatures)) as stage:
        yardstick = asking.rewards(asking.draw(reference.model, wanted.yardstick, 1.0, wanted.seed), opened.name)
        series = {opened.name: [measure(opened.name, np.zeros_like(yardstick), yardstick)]}
        done = 1
        stage.advance(done)
        for path in wanted.policies:
            policy = open_policy(path, "--policy", dtype, device)
            require_same_vocabulary(tokenizer, load.load_tokenizer(policy.source), path)
            scorer = Scorer.of(policy.model)
            name = policy.name if policy.name not in series else path
            series[name] = []
            for temperature in wanted.temperatures:
                series[name].append(point(asking, scorer, reference, name, temperature, wanted))
                done += 1
                stage.advance(done)
            del policy, scorer
    write(wanted, out, series, yardstick)
    for line in table(series, yardstick):
        display.say(line)
    display.say(f"done: {out / 'frontier.json'}, {out / 'frontier.html'}")
    return series


def point(
    asking: Asking, policy: Scorer, reference: Scorer, name: str, temperature: float, wanted: FrontierOptions
) -> Point:
    """Reward and KL of fresh samples; the KL is that of the distribution that was sampled."""
    label = name if temperature == 1 else f"{name}, T {temperature:g}"
    sampler = tempered(policy, temperature)
    drawn = asking.draw(policy.model, wanted.samples, temperature, wanted.seed + 1)
    groups = [sampled.group for sampled in drawn]
    kl = response_logps(sampler, groups) - response_logps(reference, groups)
    return measure(label, kl, asking.rewards(drawn, label))


def _prompts(wanted: FrontierOptions, renderer: Renderer, config: Any, display: Display) -> list[Prompt]:
    section = wanted.section
    groups, account = read_prompts(wanted.prompts, rows_of(section))
    require_rows(account, section)
    new, longest = wanted.max_new_tokens, section.max_prompt_length or UNLIMITED
    prompts = prompts_that_fit(
        groups[: wanted.max_prompts], renderer, config, new, account, "--max-new-tokens", longest
    )
    account.check(max_dropped_of(section))
    for line in account.lines():
        display.say(line)
    return prompts


def table(series: dict[str, list[Point]], yardstick: Floats) -> list[str]:
    """One line a point, with what the optimum has at the same KL."""
    lines = [f"{'policy':<28} {'reward':>16} {'KL, nats':>16}   optimum at this KL"]
    for points in series.values():
        for p in points:
            reward = f"{p.reward:.3f} +- {Z95 * p.reward_se:.3f}"
            kl = f"{p.kl:.3f} +- {Z95 * p.kl_se:.3f}"
            lines.append(f"{p.name:<28} {reward:>16} {kl:>16}   {possible(p, yardstick)}")
    return lines


def possible(point: Point, yardstick: Floats) -> str:
    """The optimum at a point's KL, as far as the samples of the reference can tell."""
    known = most_kl(yardstick)
    return f"{optimum_at(yardstick, max(point.kl, 0.0)):.3f}" if point.kl < known else f"beyond {known:.1f} nats"


def most_kl(yardstick: Floats) -> float:
    """M samples of the reference show at most log M nats, and half of that well."""
    return math.log(yardstick.shape[1]) / 2


def write(wanted: FrontierOptions, out: Path, series: dict[str, list[Point]], yardstick: Floats) -> None:
    """The numbers and the picture."""
    rewards = torch.from_numpy(yardstick)
    betas = [beta_at(yardstick, kl) for kl in np.geomspace(0.01, most_kl(yardstick), 16)]
    best = optimum(yardstick, betas)
    chosen = [best_of_n(yardstick, n) for n in NS if n <= yardstick.shape[1]]
    facts = {
        "settings": {
            **asdict(replace(wanted, settings=None)),
            "settings": wanted.section.model_dump(mode="json", exclude_unset=True),
        },
        "prompts": len(yardstick),
        "policies": {name: [_figures(p) for p in points] for name, points in series.items()},
        "best of n": [_figures(p) for p in chosen],
        "optimum": [
            {**_figures(p), "beta": b, "effective_samples": tilt(rewards, b).effective}
            for b, p in zip(betas, best, strict=True)
        ],
    }
    lines = {
        "optimum": [(0.0, float(yardstick.mean()))] + [(p.kl, p.reward) for p in best],
        "best of n": [(p.kl, p.reward) for p in chosen],
    }
    figure = frontier("Reward against KL", lines, series)
    heads = ["policy", "reward", "+-", "KL, nats", "+-", "optimum at this KL"]
    cells = [
        [
            p.name,
            f"{p.reward:.3f}",
            f"{Z95 * p.reward_se:.3f}",
            f"{p.kl:.3f}",
            f"{Z95 * p.kl_se:.3f}",
            possible(p, yardstick),
        ]
        for points in series.values()
        for p in points
    ]
    text = (
        "Up and to the left is better. The optimum is the closed form, estimated from "
        f"{yardstick.shape[1]} samples of the reference for each prompt and corrected for the bias of that number: "
        f"up to {most_kl(yardstick):.1f} nats. "
        "Intervals are 95 %, over prompts."
    )
    write_json(out / "frontier.json", facts)
    write_page(out / "frontier.html", "Reward against KL", [Section("Frontier", text, [heads, *cells], [figure])])


def _figures(p: Point) -> dict[str, Any]:
    return {
        **asdict(p),
        "reward_ci": [p.reward - Z95 * p.reward_se, p.reward + Z95 * p.reward_se],
        "kl_ci": [p.kl - Z95 * p.kl_se, p.kl + Z95 * p.kl_se],
    }
