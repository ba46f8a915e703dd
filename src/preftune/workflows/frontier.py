"""preftune eval frontier: reward and KL of policies at several temperatures, compared with best of n and the optimum.

policy             mean reward and sequence KL(policy || reference) of new samples, with 95 % intervals over prompts
best of n          reward estimated from samples of the reference; the KL is exact
optimum            closed form, estimated with importance weights from the same samples
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preftune.chat.open import ChatOptions, renderer_of
from preftune.chat.render import Renderer
from preftune.config.schema import DataConfig, ModelConfig
from preftune.data.prompts import Prompt, read_prompts
from preftune.errors import ConfigError, require_writable
from preftune.exact.optimum import estimate_optimum
from preftune.files import write_json
from preftune.formulas import Z95
from preftune.lifecycle.data import prompts_that_fit
from preftune.lifecycle.open_policy import chat_record_of, find_policy, open_policy
from preftune.lifecycle.policy import compute_dtype, device_of, require_same_vocabulary
from preftune.measures.frontier import Floats, Point, best_of_n, beta_at, measure, optimum, optimum_at, tempered
from preftune.model import load
from preftune.model.generate import Sampled, Sampling, sample
from preftune.model.logprobs import Scorer
from preftune.report.figures.frontier import Policy, frontier, gain_of
from preftune.report.figures.words import in_plain_text, num, percent
from preftune.report.page import Number, Page, Table, write_page
from preftune.report.verdict import chat_command
from preftune.rewards.open import open_reward
from preftune.rewards.reward import Reward, require_rewards, responses_of
from preftune.scoring import response_logps
from preftune.train.display import Display
from preftune.types import content, plain
from preftune.workflows.data_section import UNLIMITED, chat_options_of, max_dropped_of, read_rows

Texts = Sequence[tuple[str, str, float]]
SHOWN = 3  # prompts whose samples the page shows
MAX_NAME = 40  # characters of a reward's name on the axis
NS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class FrontierOptions:
    """The settings of a frontier command. `data` is the section under which the prompts are read and rendered."""

    reference: str
    policies: tuple[str, ...]
    data: DataConfig
    reward: str
    temperatures: tuple[float, ...] = (1.0,)
    samples: int = 8
    yardstick: int = 128
    max_new_tokens: int = 64
    max_prompts: int | None = None
    seed: int = 0
    dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples responses to the prompts and rewards them."""

    prompts: Sequence[Prompt]
    tokenizer: Any
    reward: Reward
    max_new_tokens: int

    def draw(self, model: Any, n: int, temperature: float, seed: int) -> list[Sampled]:
        """Return n responses to each prompt."""
        sampling = Sampling(n, self.max_new_tokens, temperature, seed=seed)
        return sample(model, self.tokenizer, [p.ids.tolist() for p in self.prompts], sampling)

    def rewards(self, sampled: Sequence[Sampled], when: str) -> Floats:
        """Return the (P, M) rewards of M responses to each of P prompts."""
        return require_rewards(self.reward, responses_of(self.prompts, sampled), when).reshape(len(self.prompts), -1)

    def shown(self, sampled: Sequence[Sampled], rewards_PM: Floats) -> Texts:
        """Return prompt, text and reward of the first response to the first prompts, for the page."""
        firsts = zip(self.prompts[:SHOWN], sampled, rewards_PM, strict=False)
        return [(content(prompt.text), one.texts[0], float(rewards[0])) for prompt, one, rewards in firsts]


def run(options: FrontierOptions, out: Path, display: Display) -> dict[str, list[Point]]:
    """Write frontier.json and frontier.html to the folder `out`. Return the points of each policy by its name."""
    if not all(0 < t < 100 for t in options.temperatures):
        raise ConfigError(
            "a temperature must be above 0 and below 100",
            where="--temperatures",
            why="greedy decoding (temperature 0) is not a distribution, so it has no KL",
            fix="set --temperatures to values such as 0.7 and 1",
        )
    if options.dtype not in ("auto", *load.DTYPES):
        raise ConfigError(f"unknown precision {options.dtype!r}", where="--dtype", fix="use auto, fp32 or bf16")
    require_writable(out)
    for path in options.policies:
        find_policy(path, "--policy")
    dtype = compute_dtype(ModelConfig(path=options.reference, dtype=options.dtype))  # type: ignore[arg-type]
    device = device_of(None)
    reward = open_reward(options.reward, "--reward", device=device)
    display.say(f"loading the reference {options.reference}")
    opened = open_policy(options.reference, "--reference", dtype, device)
    trained = next(filter(None, (chat_record_of(path, "--policy") for path in options.policies)), {})
    renderer = renderer_of(opened.source, options.data.chat_template, chat_options_of(options.data), record=trained)
    tokenizer, prompts = renderer.tokenizer, _prompts(options, renderer, opened.model.config, display)
    sampler = Sampler(prompts, tokenizer, reward, options.max_new_tokens)
    reference = Scorer.of(opened.model)
    with display.stage("frontier", 1 + len(options.policies) * len(options.temperatures)) as stage:
        sampled = sampler.draw(reference.model, options.yardstick, 1.0, options.seed)
        yardstick = sampler.rewards(sampled, opened.name)
        series = {opened.name: [measure(opened.name, np.zeros_like(yardstick), yardstick)]}
        texts = {opened.name: sampler.shown(sampled, yardstick)}
        done = 1
        stage.advance(done)
        for path in options.policies:
            policy = open_policy(path, "--policy", dtype, device)
            require_same_vocabulary(tokenizer, load.load_tokenizer(policy.source), path)
            scorer = Scorer.of(policy.model)
            name = policy.name if policy.name not in series else path
            series[name] = []
            for temperature in options.temperatures:
                measured, texts_of = point(sampler, scorer, reference, name, temperature, options)
                series[name].append(measured)
                texts[measured.name] = texts_of
                done += 1
                stage.advance(done)
            del policy, scorer
    cells = cells_of(series, yardstick)
    verdict = write(options, out, series, yardstick, cells, texts)
    display.say(f"{'policy':<28} {'reward':>16} {'KL, nats':>16}   optimum at this KL")
    for name, score, score_error, kl, kl_error, best in cells:
        display.say(f"{name:<28} {f'{score} +- {score_error}':>16} {f'{kl} +- {kl_error}':>16}   {best}")
    display.say(f"result: {in_plain_text(verdict)}")
    chat = chat_command(options.policies[0], options.reference)
    display.say(f"done: {out / 'frontier.json'}, report in {out / 'frontier.html'}. Next: {chat}")
    return series


def point(
    sampler: Sampler, policy: Scorer, reference: Scorer, name: str, temperature: float, options: FrontierOptions
) -> tuple[Point, Texts]:
    """Measure reward and KL on new samples. The KL is that of the tempered distribution. Return some samples, too."""
    label = name if temperature == 1 else f"{name}, T {temperature:g}"
    sampled = sampler.draw(policy.model, options.samples, temperature, options.seed + 1)
    groups = [s.group for s in sampled]
    kl = response_logps(tempered(policy, temperature), groups) - response_logps(reference, groups)
    rewards = sampler.rewards(sampled, label)
    return measure(label, kl, rewards), sampler.shown(sampled, rewards)


def _prompts(options: FrontierOptions, renderer: Renderer, config: Any, display: Display) -> list[Prompt]:
    groups, account = read_rows(read_prompts, options.data)
    new, longest = options.max_new_tokens, options.data.max_prompt_length or UNLIMITED
    prompts = prompts_that_fit(
        groups[: options.max_prompts], renderer, config, new, account, "--max-new-tokens", longest
    )
    account.check(max_dropped_of(options.data))
    for line in account.lines():
        display.say(line)
    return prompts


def cells_of(series: dict[str, list[Point]], yardstick: Floats) -> list[list[str]]:
    """Return name, reward and KL of each point with their errors, and the reward of the optimum at the same KL."""
    limit, cells = largest_kl(yardstick), []
    for p in (point for points in series.values() for point in points):
        numbers = [f"{value:.3f}" for value in (p.reward, Z95 * p.reward_se, p.kl, Z95 * p.kl_se)]
        best = f"{optimum_at(yardstick, max(p.kl, 0.0)):.3f}" if p.kl < limit else f"beyond {limit:.1f} nats"
        cells.append([p.name, *numbers, best])
    return cells


def largest_kl(yardstick: Floats) -> float:
    """Return the KL up to which the optimum is estimated: M samples show at most log M nats, and half of that well."""
    return math.log(yardstick.shape[1]) / 2


def write(
    options: FrontierOptions,
    out: Path,
    series: dict[str, list[Point]],
    yardstick: Floats,
    cells: list[list[str]],
    texts: Mapping[str, Texts],
) -> str:
    """Write frontier.json and frontier.html. Return the verdict of the page."""
    rewards = torch.from_numpy(yardstick)
    betas = [beta_at(yardstick, kl) for kl in np.geomspace(0.01, largest_kl(yardstick), 16)]
    best = optimum(yardstick, betas)
    effective = [estimate_optimum(rewards, beta).effective for beta in betas]
    n_best = {n: best_of_n(yardstick, n) for n in NS if n <= yardstick.shape[1]}
    facts = {
        "settings": settings_of(options),
        "prompts": len(yardstick),
        "policies": {name: [_figures(p) for p in points] for name, points in series.items()},
        "best of n": [_figures(p) for p in n_best.values()],
        "optimum": [
            {**_figures(p), "beta": b, "effective_samples": e} for b, p, e in zip(betas, best, effective, strict=True)
        ],
    }
    write_json(out / "frontier.json", facts)
    reference = next(iter(series))
    points = [
        _policy(p, "reference" if name == reference else "policy", yardstick, texts)
        for name, measured in series.items()
        for p in measured
    ]
    places = iter(range(len(points)))
    lines = [[next(places) for _ in measured] for measured in series.values()]
    points += [Policy(p.name, "best", p.kl, p.reward, n=n) for n, p in n_best.items() if n > 1]
    curve = [(0.0, float(yardstick.mean()), math.inf, float(yardstick.shape[1]))]
    curve += [(p.kl, p.reward, b, e) for b, p, e in zip(betas, best, effective, strict=True)]
    finite = [(kl, reward, min(beta, 1e9), e) for kl, reward, beta, e in curve]
    measured_with = f"{options.samples} samples of each policy for each of {len(yardstick)} prompts"
    name = f"reward ({options.reward})" if len(options.reward) <= MAX_NAME else "reward"
    card = frontier(points, finite, yardstick.shape[1], measured_with, name, "policies", lines)
    heads = ["policy", "reward", "\u00b1", "KL, nats", "\u00b1", "optimum at this KL"]
    strongest = max((p for p in points if p.kind == "policy"), key=lambda p: p.reward)
    gain = gain_of(strongest, points[0])
    share = f", {percent(gain)} of the possible gain at this KL" if gain is not None else ""
    verdict = f"{strongest.name} has the highest reward, {num(strongest.reward)} at {num(strongest.kl)} nats{share}"
    error = Z95 * math.hypot(strongest.reward_se, points[0].reward_se)
    unsure = f"; this is within the error of {num(points[0].reward)}, the reward of the reference"
    verdict += f"{unsure if abs(strongest.reward - points[0].reward) <= error else ''}."
    page = Page(
        title="preftune eval frontier",
        about=options.reference,
        verdict=verdict,
        numbers=[
            Number(num(strongest.reward, 3), f"\u00b1 {num(Z95 * strongest.reward_se, 3)} reward of {strongest.name}"),
            Number(num(strongest.kl), f"\u00b1 {num(Z95 * strongest.kl_se)} nats of KL from the reference"),
            Number(num(points[0].reward, 3), f"reward of the reference, {points[0].name}"),
        ],
        parts=[
            card,
            Table("All policies", heads, cells, f"The optimum is shown up to {largest_kl(yardstick):.1f} nats."),
        ],
    )
    write_page(out / "frontier.html", page)
    return verdict


def _policy(p: Point, kind: str, yardstick: Floats, texts: Mapping[str, Texts]) -> Policy:
    """Return a measured point as a point of the figure."""
    inside = 0 < p.kl < largest_kl(yardstick)
    best = optimum_at(yardstick, p.kl) if kind == "policy" and inside else None
    return Policy(p.name, kind, p.kl, p.reward, p.kl_se, p.reward_se, best=best, samples=texts.get(p.name, ()))


def _figures(p: Point) -> dict[str, Any]:
    return {
        **asdict(p),
        "reward_ci": [p.reward - Z95 * p.reward_se, p.reward + Z95 * p.reward_se],
        "kl_ci": [p.kl - Z95 * p.kl_se, p.kl + Z95 * p.kl_se],
    }


def settings_of(options: FrontierOptions) -> dict[str, Any]:
    """Return the settings in frontier.json: `settings` is the data section; `chat_template` and `chat` are unused."""
    settings = plain(options)
    data = settings.pop("data")
    unused = {"chat_template": None, "chat": asdict(ChatOptions())}
    section = data.model_dump(mode="json", exclude_unset=True)
    return {**settings, "prompts": data.train, **unused, "settings": section}
