"""preftune.sample, pairs, score, winrate and frontier as Python functions.

Without `out` a function leaves no files, so it cannot resume; what needs a server therefore needs `out`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from preftune.api.calls import checked, place
from preftune.api.inputs import Held, data_name, folder_name, function_name, prompts_name
from preftune.api.results import (
    FrontierResult,
    PairsResult,
    SampleResult,
    ScoreResult,
    Table,
    WinrateResult,
    read_table,
)
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
    chat_template: str | None = None,
    server: str | None = None,
    api_key_env: str | None = None,
    concurrency: Count = 8,
    timeout: Annotated[float, Field(ge=0.1, le=86400)] = 120.0,
    server_settings: dict[str, Any] | None = None,
    out: Any = None,
    quiet: bool = False,
) -> SampleResult:
    """Sample n responses to each prompt, from a model folder or from a server.

    model    folder, run or Hub id; with `server`, the model's name there
    prompts  a list of texts or of lists of messages, rows with `prompt`, a file, or data of any format
    out      file to write; the same call resumes it
    """
    from preftune.evaluate.server import Server
    from preftune.methods.samples import Wanted, run
    from preftune.model.generate import Sampling

    held: Held = {}
    require_out(server, out, "preftune.sample()")
    name = folder_name(model, "preftune.sample(): model")
    asked = Server.asked(server, name, api_key_env, concurrency, timeout, _json(server_settings))
    sampling = Sampling(n, max_new_tokens, temperature, top_p, top_k, seed)
    source = one_source(prompts_name(prompts, "prompts", held), "preftune.sample(): prompts")
    with holding(held), place(out, "samples.jsonl", quiet) as (path, display):
        run(Wanted(name, source, sampling, max_prompts, dtype, chat_template, asked), path, display)
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
    from preftune.data.select import selecting
    from preftune.evaluate.rewards import open_reward
    from preftune.methods.pairs import run
    from preftune.methods.prepare import device_of

    held: Held = {}
    how = selecting(select, gap, soft, k, beta, seed)
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
    format: Any = "auto",
    max_length: Annotated[int, Field(ge=2)] | None = None,
    dtype: str = "auto",
    chat_template: str | None = None,
    out: Any = None,
    quiet: bool = False,
) -> ScoreResult:
    """Rewards of preference data: beta log(policy / reference) of each response, or any reward.

    policy, reference  folders, runs or Hub ids; or `reward` alone, as in preftune.pairs
    tokens             also the reward of every token
    out                file to write, with its summary beside it
    """
    from preftune.methods.score import run, scoring_of

    held: Held = {}
    where = "preftune.score()"
    names = [
        None if m is None else folder_name(m, f"{where}: {n}")
        for n, m in (("policy", policy), ("reference", reference))
    ]
    judge = None if reward is None else reward_name(reward, held, f"{where}: reward")
    source = one_source(data_name(data, "data", held), f"{where}: data")
    wanted = scoring_of(
        (names[0], names[1], judge),
        source,
        beta,
        tokens,
        function_name(format, held),
        max_length,
        dtype,
        chat_template,
        mode,
    )
    with holding(held), place(out, "scores.jsonl", quiet) as (path, display):
        run(wanted, path, display)
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
    chat_template: str | None = None,
    dry_run: bool = False,
    out: Any = None,
    quiet: bool = False,
) -> WinrateResult:
    """How often a judge prefers a policy's responses, in both orders, over sampling temperatures.

    policy   one or several folders, runs or Hub ids
    data     preference data or demonstrations; with `against`, prompts are enough
    judge    a reward (a function, a folder, a name), lm:FOLDER, first, random; with `judge_url`, a model's name there
    against  another model; left out, the responses that the data prefer
    out      folder for samples, verdicts and results; the same call resumes in it
    """
    from preftune.evaluate.server import Server
    from preftune.methods.winrate import Contest, run

    held: Held = {}
    where = "preftune.winrate()"
    require_out(judge_url, out, where)
    named = reward_name(judge, held, f"{where}: judge")
    contest = Contest(
        tuple(folder_name(one, f"{where}: policy") for one in _several(policy)),
        one_source(data_name(data, "data", held), f"{where}: data"),
        named,
        None if against is None else folder_name(against, f"{where}: against"),
        tuple(temperatures),
        max_new_tokens,
        max_prompts,
        task,
        seed,
        dtype,
        chat_template,
        Server.asked(judge_url, named, api_key_env, concurrency, timeout, _json(server_settings)),
        price_in,
        price_out,
    )
    with holding(held), place(out, "winrate", quiet) as (folder, display):
        rates = run(contest, folder, display, dry_run)
        if dry_run:
            return WinrateResult({}, Table(()), None, None)
        written = json.loads((folder / "winrate.json").read_text())
    rows = tuple(
        {"policy": name, "temperature": float(t), **values}
        for name, by in written["win_rates"].items()
        for t, values in by.items()
    )
    return WinrateResult(rates, Table(rows), written["agreement_with_labels"], _kept(out))


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
    chat_template: str | None = None,
    out: Any = None,
    quiet: bool = False,
) -> FrontierResult:
    """Reward and KL of policies at several temperatures, beside best of n and the optimum.

    reference  what the policies were tuned from
    policy     one or several folders, runs or Hub ids
    prompts    as in preftune.sample; `reward` as in preftune.pairs
    out        folder for frontier.json and frontier.html
    """
    from preftune.methods.frontier import Frontier, run

    held: Held = {}
    where = "preftune.frontier()"
    wanted = Frontier(
        folder_name(reference, f"{where}: reference"),
        tuple(folder_name(one, f"{where}: policy") for one in _several(policy)),
        one_source(prompts_name(prompts, "prompts", held), f"{where}: prompts"),
        reward_name(reward, held, f"{where}: reward"),
        tuple(temperatures),
        samples,
        yardstick,
        max_new_tokens,
        max_prompts,
        seed,
        dtype,
        chat_template,
    )
    with holding(held), place(out, "frontier", quiet) as (folder, display):
        run(wanted, folder, display)
        found = json.loads((folder / "frontier.json").read_text())
    points = tuple(point for series in found["policies"].values() for point in series)
    return FrontierResult(Table(points), Table(tuple(found["best of n"])), Table(tuple(found["optimum"])), _kept(out))


def reward_name(reward: Any, held: Held, where: str) -> str:
    """A reward's name; a function by a name that `held` explains."""
    if callable(reward) and not hasattr(reward, "parameters"):
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
