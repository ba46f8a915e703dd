"""The evaluation of benchmarks/chat_result.py: what one seed's models do on prompts that no model has seen.

Everything that takes long is saved in the folder of the seed and is not computed twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from preftune.chat.open import load_renderer
from preftune.config.schema import DataConfig, ModelConfig
from preftune.data.convert import group_rows
from preftune.data.layout import Budget
from preftune.data.read_groups import read_groups
from preftune.data.tokenize_groups import Limits, tokenize
from preftune.files import write_json, write_rows
from preftune.formats.account import Account
from preftune.formulas import Floats
from preftune.lifecycle.open_policy import open_policy
from preftune.lifecycle.packing_probe import choose_layout
from preftune.lifecycle.policy import compute_dtype, device_of
from preftune.measures.win_rate import sides
from preftune.methods.sft import preferred
from preftune.model.generate import Sampling
from preftune.model.locate import locate
from preftune.model.logprobs import Scorer
from preftune.rewards.open import open_reward
from preftune.rewards.reward import PromptResponse
from preftune.scoring import SLOTS, response_logps
from preftune.train.display import Display
from preftune.types import Message, PreferenceGroup, TokenGroup, as_json, content
from preftune.workflows import sample as samples
from preftune.workflows import score
from preftune.workflows.sample import SampleOptions

BETA = 0.1
HUMAN = "chosen response"
PAIRS, PROMPTS = "test-pairs.jsonl", "prompts.jsonl"
QUIET = Display(quiet=True)


@dataclass(frozen=True, slots=True)
class Models:
    """The folders of the models of a seed. `start` is the chat model before any training."""

    start: Path
    sft: Path
    policies: dict[str, Path]
    judge: Path

    def writers(self) -> dict[str, Path]:
        """The models whose responses are judged, by name."""
        return {"chat model": self.start, "SFT": self.sft, **self.policies}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured: numbers of prompts and rows, and the limits of lengths in tokens."""

    prompts: int
    pairs: int | None
    other: str | None
    other_rows: int
    temperatures: tuple[float, ...]
    max_new_tokens: int
    max_length: int
    seed: int


def evaluate(
    models: Models, test: Path, folder: Path, settings: Settings, only: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Return all measurements of a seed, one number per pair, response or row.

    Each step is saved in `folder`. `only` computes these steps and returns None, so that several processes can share
    the work.
    """
    groups = read_groups(str(test))[0][: settings.pairs]
    first = list({group.prompt: group for group in groups}.values())[: settings.prompts]
    if not (folder / PROMPTS).is_file():
        write_rows(folder / PAIRS, list(group_rows(groups)))
        write_rows(folder / PROMPTS, ({"prompt": as_json(group.prompt)} for group in first))
    steps = steps_of(models, first, folder, settings)
    if only:
        for name in only:
            _saved(folder / f"{name}.json", steps[name])
        return None
    values = {name: _saved(folder / f"{name}.json", step) for name, step in steps.items()}
    return {
        "margins": {name: values[f"margins-{short(name)}"] for name in (*models.policies, "judge")},
        "longer": [longer_is_chosen(group) for group in groups],
        "responses": [row for name in (*models.writers(), HUMAN) for row in values[f"responses-{short(name)}"]],
        "kl": {name: values[f"kl-{short(name)}"] for name in ("SFT", *models.policies)},
        "other": {name: values[f"other-{short(name)}"] for name in models.writers()} if settings.other else {},
    }


def steps_of(
    models: Models, first: Sequence[PreferenceGroup], folder: Path, settings: Settings
) -> dict[str, Callable[[], Any]]:
    """Return the steps of an evaluation by name. The KL needs the responses."""
    steps: dict[str, Callable[[], Any]] = {"margins-judge": partial(by_judge, models, folder, settings)}
    steps[f"responses-{short(HUMAN)}"] = partial(chosen_responses, models, first)
    for name, path in models.writers().items():
        steps[f"responses-{short(name)}"] = partial(responses_of, models, name, first, folder, settings)
        if settings.other:
            steps[f"other-{short(name)}"] = partial(other_losses, models, path, settings)
        if name in models.policies:
            steps[f"margins-{short(name)}"] = partial(implicit, models, path, folder, settings)
        if path != models.start:
            reference = models.start if path == models.sft else models.sft
            steps[f"kl-{short(name)}"] = partial(log_ratios, name, path, reference, first, folder)
    return steps


def short(name: str) -> str:
    """Return the name of a model as a part of file names."""
    return name.replace(", ", "-").replace(" ", "-").lower()


def _saved(path: Path, compute: Callable[[], Any]) -> Any:
    if not path.is_file():
        value = compute()
        write_json(path, value)
        print(f"{path} written", flush=True)
    return json.loads(path.read_text())


def implicit(models: Models, policy: Path, folder: Path, settings: Settings) -> list[float]:
    """Return the margins of the implicit reward on held-out pairs."""
    data = DataConfig(train=str(folder / PAIRS), max_length=settings.max_length)
    options = score.ScoreOptions(str(policy), str(models.sft), data, BETA)
    return _margins(options, folder / f"scores-{policy.parent.name}.jsonl")


def by_judge(models: Models, folder: Path, settings: Settings) -> list[float]:
    """Return the margins of the judge on held-out pairs."""
    data = DataConfig(train=str(folder / PAIRS), max_length=settings.max_length)
    return _margins(score.RewardScoreOptions(str(models.judge), data), folder / "scores-judge.jsonl")


def _margins(options: score.ScoreOptions | score.RewardScoreOptions, out: Path) -> list[float]:
    lines = score.run(options, out, QUIET).read_text().splitlines()
    return [json.loads(line)["margin"] for line in lines]


def longer_is_chosen(group: PreferenceGroup) -> float:
    """Return 1 if the better response has more characters than the other one, 0 if fewer, 1/2 if as many."""
    better, worse = sides(group.judgements[0]) or (0, 1)
    difference = len(content(group.responses[better])) - len(content(group.responses[worse]))
    return 0.5 + 0.5 * float(np.sign(difference))


def chosen_responses(models: Models, first: Sequence[PreferenceGroup]) -> list[dict[str, Any]]:
    """Return the chosen responses of the data, with the judge's rewards."""
    rows = []
    for number, group in enumerate(first):
        better = (sides(group.judgements[0]) or (0, 1))[0]
        rows.append({"model": HUMAN, "prompt": number, "text": content(group.responses[better]), "ended": True})
    return rewarded(models, first, rows)


def responses_of(
    models: Models, name: str, first: Sequence[PreferenceGroup], folder: Path, settings: Settings
) -> list[dict[str, Any]]:
    """Return a model's response to each prompt at each temperature, with the judge's rewards."""
    model, data = str(models.writers()[name]), DataConfig(train=str(folder / PROMPTS))
    rows: list[dict[str, Any]] = []
    for temperature in settings.temperatures:
        out = folder / f"samples-{short(name)}-T{temperature:g}.jsonl"
        sampling = Sampling(1, settings.max_new_tokens, temperature, seed=settings.seed)
        samples.run(SampleOptions(model, data, sampling), out, QUIET)
        for number, row in enumerate(map(json.loads, out.read_text().splitlines())):
            where = {"model": name, "temperature": temperature, "prompt": number}
            rows.append({**where, "text": row["responses"][0], "ended": row["ended"][0]})
    return rewarded(models, first, rows)


def rewarded(models: Models, first: Sequence[PreferenceGroup], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the judge's reward to each response."""
    reward = open_reward(str(models.judge), "judge", device=device_of(None))
    values: list[float | None] = []
    for begin in range(0, len(rows), 64):
        part = [PromptResponse(first[r["prompt"]].prompt, r["text"], r["ended"]) for r in rows[begin : begin + 64]]
        values += reward(part)
    return [{**row, "reward": value} for row, value in zip(rows, values, strict=True)]


def log_ratios(name: str, policy: Path, reference: Path, first: Sequence[PreferenceGroup], folder: Path) -> list[float]:
    """Return log policy - log reference of each response sampled at temperature 1: their mean is the KL, in nats.

    A response that reached the token limit counts up to there.
    """
    rows = json.loads((folder / f"responses-{short(name)}.json").read_text())
    groups = [
        PreferenceGroup(
            first[r["prompt"]].prompt, ((Message("assistant", r["text"]),),), ended=(r["ended"],), origin=""
        )
        for r in rows
        if r["temperature"] == 1
    ]
    tokens = _tokens(policy, groups, 1 << 20)
    ratios: list[float] = (log_probs(policy, tokens) - log_probs(reference, tokens)).tolist()
    return ratios


def other_losses(models: Models, model: Path, settings: Settings) -> list[float]:
    """Return the loss per token of a model on demonstrations of a different kind."""
    groups, _ = read_groups(str(settings.other))
    tokens = preferred(_tokens(models.start, groups[: settings.other_rows], settings.max_length))
    lengths = np.array([len(group.response_ids[0]) for group in tokens])
    losses: list[float] = (-log_probs(model, tokens) / lengths).tolist()
    return losses


def _tokens(model: Path, groups: Sequence[PreferenceGroup], max_length: int) -> list[TokenGroup]:
    renderer = load_renderer(DataConfig(train="-"), locate(str(model)))
    return list(tokenize(list(groups), renderer, Limits(max_length), Account("responses")))


def log_probs(model: Path, groups: Sequence[TokenGroup]) -> Floats:
    """Return the summed log-prob of the only response of each group."""
    dtype = compute_dtype(ModelConfig(path=str(model)))
    scorer = Scorer.of(open_policy(str(model), "model", dtype, device_of(None)).model)
    layout, _ = choose_layout(scorer, "auto")
    values: Floats = response_logps(scorer, groups, Budget(layout, SLOTS))[:, 0]
    return values
