"""The Python functions preftune.sample, pairs, score, winrate and frontier.

Without `out`, a function writes no files and cannot resume. Functions that use a server therefore need `out`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Unpack

from pydantic import Field

from preftune.api.calls import checked, output
from preftune.api.inputs import Held, data_name, folder_name, function_name, is_model, prompts_name
from preftune.api.models import models
from preftune.api.results import (
    FrontierResult,
    PairsResult,
    SampleResult,
    ScoreResult,
    Table,
    WinrateResult,
    read_table,
)
from preftune.api.settings import PromptSettings, ScoreSettings, data_section
from preftune.errors import ConfigError
from preftune.in_memory import holding

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
Timeout = Annotated[float, Field(ge=0.1, le=86400)]


@checked
def sample(
    *, model: Any, prompts: Any, n: Count = 1, temperature: NonNegative = 1.0,
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0, top_k: Annotated[int, Field(ge=0)] = 0,
    max_new_tokens: Count = 64, seed: Seed = 0, max_prompts: Count | None = None, dtype: str = "auto",
    server: str | None = None, api_key_env: str | None = None, concurrency: Count = 8, timeout: Timeout = 120.0,
    server_settings: dict[str, Any] | None = None, tokenizer: Any = None, out: Any = None, quiet: bool = False,
    **settings: Unpack[PromptSettings],
) -> SampleResult:  # fmt: skip
    """Sample n responses to each prompt from a model or a server.

    model      folder, run, Hub id or model in memory; with `server`, the model's name there
    prompts    list of texts or of lists of messages, rows with `prompt`, file, or data of any format
    server     URL of an OpenAI-compatible server; needs `out`
    tokenizer  tokenizer of a model in memory
    out        file to write; the same call resumes
    settings   keys of the section `data`: columns, ignore, chat_template, as_chat, ...
    """
    from preftune.client import Client
    from preftune.model.generate import Sampling
    from preftune.workflows.sample import SampleOptions, run

    held: Held = {}
    where = "preftune.sample()"
    require_out(server, out, where)
    sampling = Sampling(n, max_new_tokens, temperature, top_p, top_k, seed)
    source = one_source(prompts_name(prompts, "prompts", held), f"{where}: prompts")
    section = data_section(source, settings, held, where)
    with models(held, tokenizer, where) as name_of:
        name = folder_name(model, f"{where}: model") if server else name_of(model, "model")
        client = Client.from_options(server, name, api_key_env, concurrency, timeout, _json(server_settings))
        options = SampleOptions(name, section, sampling, max_prompts, dtype, client)
        with holding(held), output(out, "samples.jsonl", quiet) as (path, display):
            run(options, path, display)
            return SampleResult(read_table(path), _path_of(out))


@checked
def pairs(
    samples: Any, *, reward: Any = None, select: str = "best-worst", gap: NonNegative = 0.0, soft: bool = False,
    k: Count = 1, beta: Annotated[float, Field(ge=1e-6)] = 0.1, seed: Seed = 0, out: Any = None,
    quiet: bool = False,
) -> PairsResult:  # fmt: skip
    """Make preference data from samples and their rewards.

    samples  result of preftune.sample, its file, or rows with prompt and responses
    reward   function (prompts, responses) -> rewards, folder or run of a reward model, or other name of a reward; by
             default, the `scores` of the samples
    select   how to select pairs: best-worst, best-random, all, top-k (for sft) or rso
    out      file to write
    """
    from preftune.data.select import selection_options
    from preftune.lifecycle.policy import device_of
    from preftune.rewards.open import open_reward
    from preftune.workflows.pairs import run

    held: Held = {}
    selection = selection_options(select, gap, soft, k, beta, seed)
    source = one_source(data_name(samples, "samples", held), "preftune.pairs(): samples")
    name = None if reward is None else reward_name(reward, held, "preftune.pairs(): reward")
    with holding(held), output(out, "prefs.jsonl", quiet) as (path, display):
        scorer = open_reward(name, "--reward", device=device_of(None)) if name else None
        account = run(source, path, selection, scorer, display)
        return PairsResult(read_table(path), account, _path_of(out))


@checked
def score(
    *, data: Any, policy: Any = None, reference: Any = None, reward: Any = None, beta: NonNegative = 0.1,
    tokens: bool = False, mode: str = "corrected", dtype: str = "auto", tokenizer: Any = None, out: Any = None,
    quiet: bool = False, **settings: Unpack[ScoreSettings],
) -> ScoreResult:  # fmt: skip
    """Score preference data with the implicit reward beta log(policy / reference) or any other reward.

    policy, reference  folders, runs, Hub ids or models in memory
    reward             reward to use instead of both, as in preftune.pairs
    tokens             also return the reward of every token
    mode               corrected; or compatible, which adds the scores as RewardBench computes them
    tokenizer          tokenizer of models in memory
    out                file to write; its summary is written to the same folder
    settings           keys of the section `data`: format, columns, ignore, max_length, chat_template, ...
    """
    from preftune.workflows.score import options_for, run

    held: Held = {}
    where = "preftune.score()"
    scorer = None if reward is None else reward_name(reward, held, f"{where}: reward")
    source = one_source(data_name(data, "data", held), f"{where}: data")
    section = data_section(source, settings, held, where)
    with models(held, tokenizer, where) as name_of:
        policy_name = None if policy is None else name_of(policy, "policy")
        reference_name = None if reference is None else name_of(reference, "reference")
        options = options_for((policy_name, reference_name, scorer), section, beta, tokens, dtype, mode)
        with holding(held), output(out, "scores.jsonl", quiet) as (path, display):
            run(options, path, display)
            summary = json.loads(path.with_name(f"{path.stem}.summary.json").read_text())
            return ScoreResult(read_table(path), summary, _path_of(out))


@checked
def winrate(
    *, policy: Any, data: Any, judge: Any, against: Any = None,
    temperatures: Sequence[float] = (0.25, 0.5, 0.75, 1.0), max_new_tokens: Count = 128,
    max_prompts: Count | None = None, task: str = "general", judge_url: str | None = None,
    api_key_env: str | None = None, concurrency: Count = 8, timeout: Timeout = 120.0,
    server_settings: dict[str, Any] | None = None, price_in: NonNegative = 0.0, price_out: NonNegative = 0.0,
    seed: Seed = 0, dtype: str = "auto", dry_run: bool = False, tokenizer: Any = None, out: Any = None,
    quiet: bool = False, **settings: Unpack[PromptSettings],
) -> WinrateResult:  # fmt: skip
    """Measure how often a judge prefers a policy's responses, in both orders, at several sampling temperatures.

    policy     one or several folders, runs, Hub ids or models in memory
    data       preference data or demonstrations; with `against`, prompts are enough
    judge      a reward (function, folder or name), lm:FOLDER, first or random; with `judge_url`, the model's name there
    against    model to compare with; by default, the preferred responses in the data
    task       instructions for a language model as judge: general, dialogue or summarisation
    dry_run    estimate the cost of the judge's server without sending requests
    out        folder for samples, verdicts and results; the same call resumes

    The other arguments are those of preftune.sample.
    """
    from preftune.client import Client
    from preftune.workflows.winrate import WinRateOptions, run

    held: Held = {}
    where = "preftune.winrate()"
    require_out(judge_url, out, where)
    judge_name = reward_name(judge, held, f"{where}: judge")
    server = Client.from_options(judge_url, judge_name, api_key_env, concurrency, timeout, _json(server_settings))
    source = one_source(data_name(data, "data", held), f"{where}: data")
    section = data_section(source, settings, held, where)
    with models(held, tokenizer, where) as name_of:
        policies = tuple(name_of(one, "policy") for one in _as_list(policy))
        opponent = None if against is None else name_of(against, "against")
        limits = (tuple(temperatures), max_new_tokens, max_prompts, task, seed, dtype)
        values = (policies, section, judge_name, opponent, *limits)
        options = WinRateOptions(*values, server=server, price_in=price_in, price_out=price_out)
        with holding(held), output(out, "winrate", quiet) as (folder, display):
            rates = run(options, folder, display, dry_run)
            if dry_run:  # no file is written
                return WinrateResult({}, Table(()), None, None)
            result = json.loads((folder / "winrate.json").read_text())
    rows = tuple(
        {"policy": name, "temperature": float(temperature), **values}
        for name, by_temperature in result["win_rates"].items()
        for temperature, values in by_temperature.items()
    )
    return WinrateResult(rates, Table(rows), result["agreement_with_labels"], _path_of(out))


@checked
def frontier(
    *, reference: Any, policy: Any, prompts: Any, reward: Any, temperatures: Sequence[float] = (1.0,),
    samples: Count = 8, yardstick: Annotated[int, Field(ge=2)] = 128, max_new_tokens: Count = 64,
    max_prompts: Count | None = None, seed: Seed = 0, dtype: str = "auto", tokenizer: Any = None, out: Any = None,
    quiet: bool = False, **settings: Unpack[PromptSettings],
) -> FrontierResult:  # fmt: skip
    """Measure reward and KL of policies at several temperatures, and compare with best of n and the optimum.

    reference  model that the policies were trained from
    policy     one or several folders, runs, Hub ids or models in memory
    prompts    as in preftune.sample
    reward     as in preftune.pairs
    samples    responses per prompt from each policy
    yardstick  responses per prompt from the reference
    tokenizer  tokenizer of models in memory
    out        folder for frontier.json and frontier.html
    settings   keys of the section `data`, as in preftune.sample
    """
    from preftune.workflows.frontier import FrontierOptions, run

    held: Held = {}
    where = "preftune.frontier()"
    source = one_source(prompts_name(prompts, "prompts", held), f"{where}: prompts")
    section = data_section(source, settings, held, where)
    with models(held, tokenizer, where) as name_of:
        base, policies = name_of(reference, "reference"), tuple(name_of(one, "policy") for one in _as_list(policy))
        scorer, levels = reward_name(reward, held, f"{where}: reward"), tuple(temperatures)
        options = FrontierOptions(
            base, policies, section, scorer, levels, samples, yardstick, max_new_tokens, max_prompts, seed, dtype
        )
        with holding(held), output(out, "frontier", quiet) as (folder, display):
            run(options, folder, display)
            result = json.loads((folder / "frontier.json").read_text())
    points = tuple(point for series in result["policies"].values() for point in series)
    best_of_n, optimum = Table(tuple(result["best of n"])), Table(tuple(result["optimum"]))
    return FrontierResult(Table(points), best_of_n, optimum, _path_of(out))


def reward_name(reward: Any, held: Held, where: str) -> str:
    """Return the name of a reward. A function is added to `held`."""
    if callable(reward) and not is_model(reward):
        return function_name(reward, held, exact=False)
    return folder_name(reward, where)


def one_source(source: Any, where: str) -> str:
    """Return a single file name. Raises ConfigError for a list of files."""
    if isinstance(source, list):
        what = f"expected one file, got {len(source)}"
        raise ConfigError(what, where=where, fix="put the rows into one file or list")
    return str(source)


def require_out(server: str | None, out: Any, where: str) -> None:
    """Raise ConfigError for a server without `out`, because its completions would be lost."""
    if server is not None and out is None:
        why = "responses are saved there as they arrive, so that you do not pay for a response twice"
        raise ConfigError("`out` is required with a server", where=where, why=why, fix="set out=...")


def _as_list(models: Any) -> list[Any]:
    return list(models) if isinstance(models, list | tuple) else [models]


def _json(settings: Mapping[str, Any] | None) -> str | None:
    return json.dumps(settings) if settings else None


def _path_of(out: Any) -> Path | None:
    return None if out is None else Path(out)
