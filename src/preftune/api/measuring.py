"""preftune.sample, pairs, score, winrate and frontier as Python functions.

Without `out` a function leaves no files, so it cannot resume; what needs a server therefore needs `out`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Unpack

from pydantic import Field

from preftune.api.calls import checked, place
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
from preftune.objects import holding

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


@checked
def sample(
    *,
    model: Any,
    prompts: Any,
    n: Count = 1,
    temperature: Annotated[float, Field(ge=0)] = 1.0,
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0,
    top_k: Annotated[int, Field(ge=0)] = 0,
    max_new_tokens: Count = 64,
    seed: Seed = 0,
    max_prompts: Count | None = None,
    dtype: str = "auto",
    server: str | None = None,
    api_key_env: str | None = None,
    concurrency: Count = 8,
    timeout: Annotated[float, Field(ge=0.1, le=86400)] = 120.0,
    server_settings: dict[str, Any] | None = None,
    tokenizer: Any = None,
    out: Any = None,
    quiet: bool = False,
    **settings: Unpack[PromptSettings],
) -> SampleResult:
    """Sample n responses to each prompt, from a model or from a server.

    model      folder, run, Hub id or a model in memory; with `server`, the model's name there
    prompts    a list of texts or of lists of messages, rows with `prompt`, a file, or data of any format
    tokenizer  for a model in memory
    out        file to write; the same call resumes it
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
        with holding(held), place(out, "samples.jsonl", quiet) as (path, display):
            run(options, path, display)
            return SampleResult(read_table(path), _kept(out))


@checked
def pairs(
    samples: Any,
    *,
    reward: Any = None,
    select: str = "best-worst",
    gap: Annotated[float, Field(ge=0)] = 0.0,
    soft: bool = False,
    k: Count = 1,
    beta: Annotated[float, Field(ge=1e-6)] = 0.1,
    seed: Seed = 0,
    out: Any = None,
    quiet: bool = False,
) -> PairsResult:
    """Make preference data of samples and their rewards.

    samples  what preftune.sample returned, its file, or rows with prompt and responses
    reward   a function (prompts, responses) -> rewards, a reward model's folder or run, or another name of a reward;
             left out, the samples' own `scores`
    out      file to write
    """
    from preftune.data.select import selection_options
    from preftune.lifecycle.policy import device_of
    from preftune.rewards.open import open_reward
    from preftune.workflows.pairs import run

    held: Held = {}
    how = selection_options(select, gap, soft, k, beta, seed)
    source = one_source(data_name(samples, "samples", held), "preftune.pairs(): samples")
    name = None if reward is None else reward_name(reward, held, "preftune.pairs(): reward")
    with holding(held), place(out, "prefs.jsonl", quiet) as (path, display):
        judge = open_reward(name, "--reward", device=device_of(None)) if name else None
        account = run(source, path, how, judge, display)
        return PairsResult(read_table(path), account, _kept(out))


@checked
def score(
    *,
    data: Any,
    policy: Any = None,
    reference: Any = None,
    reward: Any = None,
    beta: Annotated[float, Field(ge=0)] = 0.1,
    tokens: bool = False,
    mode: str = "corrected",
    dtype: str = "auto",
    tokenizer: Any = None,
    out: Any = None,
    quiet: bool = False,
    **settings: Unpack[ScoreSettings],
) -> ScoreResult:
    """Rewards of preference data: beta log(policy / reference) of each response, or any reward.

    policy, reference  folders, runs, Hub ids or models in memory; or `reward` alone, as in preftune.pairs
    tokens             also the reward of every token
    mode               corrected, or compatible: also RewardBench's own figures
    tokenizer          for models in memory
    out                file to write, with its summary beside it
    settings           keys of the section `data`: format, columns, ignore, max_length, chat_template, ...
    """
    from preftune.workflows.score import options_for, run

    held: Held = {}
    where = "preftune.score()"
    judge = None if reward is None else reward_name(reward, held, f"{where}: reward")
    source = one_source(data_name(data, "data", held), f"{where}: data")
    section = data_section(source, settings, held, where)
    with models(held, tokenizer, where) as name_of:
        tuned = None if policy is None else name_of(policy, "policy")
        before = None if reference is None else name_of(reference, "reference")
        options = options_for((tuned, before, judge), section, beta, tokens, dtype, mode)
        with holding(held), place(out, "scores.jsonl", quiet) as (path, display):
            run(options, path, display)
            summary = json.loads(path.with_name(f"{path.stem}.summary.json").read_text())
            return ScoreResult(read_table(path), summary, _kept(out))


@checked
def winrate(
    *,
    policy: Any,
    data: Any,
    judge: Any,
    against: Any = None,
    temperatures: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    max_new_tokens: Count = 128,
    max_prompts: Count | None = None,
    task: str = "general",
    judge_url: str | None = None,
    api_key_env: str | None = None,
    concurrency: Count = 8,
    timeout: Annotated[float, Field(ge=0.1, le=86400)] = 120.0,
    server_settings: dict[str, Any] | None = None,
    price_in: Annotated[float, Field(ge=0)] = 0.0,
    price_out: Annotated[float, Field(ge=0)] = 0.0,
    seed: Seed = 0,
    dtype: str = "auto",
    dry_run: bool = False,
    tokenizer: Any = None,
    out: Any = None,
    quiet: bool = False,
    **settings: Unpack[PromptSettings],
) -> WinrateResult:
    """How often a judge prefers a policy's responses, in both orders, over sampling temperatures.

    policy     one or several folders, runs, Hub ids or models in memory
    data       preference data or demonstrations; with `against`, prompts are enough
    judge      a reward (a function, a folder, a name), lm:FOLDER, first, random; with `judge_url`, a model's name there
    against    another model; left out, the responses that the data prefer
    task       general, dialogue or summarisation: the instructions of a chat model or lm: as judge
    dry_run    report what a server would cost and ask it nothing
    out        folder for samples, verdicts and results; the same call resumes in it

    `tokenizer` and the settings are those of preftune.sample.
    """
    from preftune.client import Client
    from preftune.workflows.winrate import WinRateOptions, run

    held: Held = {}
    where = "preftune.winrate()"
    require_out(judge_url, out, where)
    named = reward_name(judge, held, f"{where}: judge")
    server = Client.from_options(judge_url, named, api_key_env, concurrency, timeout, _json(server_settings))
    source = one_source(data_name(data, "data", held), f"{where}: data")
    section = data_section(source, settings, held, where)
    with models(held, tokenizer, where) as name_of:
        policies = tuple(name_of(one, "policy") for one in _several(policy))
        other = None if against is None else name_of(against, "against")
        who = (policies, section, named, other, tuple(temperatures), max_new_tokens, max_prompts, task, seed, dtype)
        contest = WinRateOptions(*who, server=server, price_in=price_in, price_out=price_out)
        with holding(held), place(out, "winrate", quiet) as (folder, display):
            rates = run(contest, folder, display, dry_run)
            return _wins({} if dry_run else json.loads((folder / "winrate.json").read_text()), rates, out)


@checked
def frontier(
    *,
    reference: Any,
    policy: Any,
    prompts: Any,
    reward: Any,
    temperatures: Sequence[float] = (1.0,),
    samples: Count = 8,
    yardstick: Annotated[int, Field(ge=2)] = 128,
    max_new_tokens: Count = 64,
    max_prompts: Count | None = None,
    seed: Seed = 0,
    dtype: str = "auto",
    tokenizer: Any = None,
    out: Any = None,
    quiet: bool = False,
    **settings: Unpack[PromptSettings],
) -> FrontierResult:
    """Reward and KL of policies at several temperatures, beside best of n and the optimum.

    reference  what the policies were tuned from
    policy     one or several folders, runs, Hub ids or models in memory
    prompts    as in preftune.sample; `reward` as in preftune.pairs
    samples    responses per prompt of each policy
    yardstick  responses per prompt of the reference
    tokenizer  for models in memory
    out        folder for frontier.json and frontier.html
    settings   keys of the section `data`, as in preftune.sample
    """
    from preftune.workflows.frontier import FrontierOptions, run

    held: Held = {}
    where = "preftune.frontier()"
    source = one_source(prompts_name(prompts, "prompts", held), f"{where}: prompts")
    section = data_section(source, settings, held, where)
    with models(held, tokenizer, where) as name_of:
        wanted = FrontierOptions(
            name_of(reference, "reference"),
            tuple(name_of(one, "policy") for one in _several(policy)),
            section,
            reward_name(reward, held, f"{where}: reward"),
            tuple(temperatures),
            samples,
            yardstick,
            max_new_tokens,
            max_prompts,
            seed,
            dtype,
        )
        with holding(held), place(out, "frontier", quiet) as (folder, display):
            run(wanted, folder, display)
            found = json.loads((folder / "frontier.json").read_text())
    points = tuple(point for series in found["policies"].values() for point in series)
    return FrontierResult(Table(points), Table(tuple(found["best of n"])), Table(tuple(found["optimum"])), _kept(out))


def _wins(written: Mapping[str, Any], rates: Any, out: Any) -> WinrateResult:
    """The result that winrate.json holds; empty after a dry run, which writes none."""
    if not written:
        return WinrateResult({}, Table(()), None, None)
    every = [(name, t, values) for name, by in written["win_rates"].items() for t, values in by.items()]
    rows = tuple({"policy": name, "temperature": float(t), **values} for name, t, values in every)
    return WinrateResult(rates, Table(rows), written["agreement_with_labels"], _kept(out))


def reward_name(reward: Any, held: Held, where: str) -> str:
    """A reward's name; a function by a name that `held` explains."""
    if callable(reward) and not is_model(reward):
        return function_name(reward, held, exact=False)
    return folder_name(reward, where)


def one_source(source: Any, where: str) -> str:
    """Raises ConfigError for several files where one is read."""
    if isinstance(source, list):
        raise ConfigError(
            f"{len(source)} files, where one is read", where=where, fix="put their rows into one file or list"
        )
    return str(source)


def require_out(server: str | None, out: Any, where: str) -> None:
    """Raises ConfigError where answers of a server would be lost."""
    if server is not None and out is None:
        raise ConfigError(
            "a server without a place for its answers",
            where=where,
            why="answers are saved as they come, so that none is paid for twice",
            fix="give out=...",
        )


def _several(models: Any) -> list[Any]:
    return list(models) if isinstance(models, list | tuple) else [models]


def _json(settings: Mapping[str, Any] | None) -> str | None:
    return json.dumps(settings) if settings else None


def _kept(out: Any) -> Path | None:
    return None if out is None else Path(os.fspath(out))
