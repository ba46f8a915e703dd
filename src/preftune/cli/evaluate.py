"""preftune eval ..."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.options import Settings

app = typer.Typer(help="Measure tuned models: frontier, winrate, length-controlled.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Measure tuned models."""


@app.command()
def frontier(
    reference: Annotated[str, typer.Option(help="What the policies were tuned from: folder, run or Hub id.")],
    policy: Annotated[list[str], typer.Option(help="Tuned model, run folder or checkpoint; can be repeated.")],
    prompts: Annotated[str, typer.Option(help="Rows with `prompt`, or preference data, whose prompts are taken.")],
    reward: Annotated[
        str, typer.Option(help="Any reward, as in preftune pairs: a folder, vader, file.py:function, ...")
    ],
    out: Annotated[Path, typer.Option(help="Folder for frontier.json and frontier.html.")] = Path("frontier"),
    temperatures: Annotated[str, typer.Option(help="Sampling temperatures, separated by commas.")] = "1",
    samples: Annotated[int, typer.Option(help="Responses per prompt of each policy.", min=1)] = 8,
    yardstick: Annotated[int, typer.Option(help="Responses per prompt of the reference.", min=2)] = 128,
    max_new_tokens: Annotated[int, typer.Option(help="Where a response is cut off.", min=1)] = 64,
    max_prompts: Annotated[int | None, typer.Option(help="Use only the first N prompts.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of all samples.", min=0)] = 0,
    dtype: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    chat_template: Annotated[str | None, typer.Option(help="As data.chat_template.")] = None,
    chat_template_kwargs: Annotated[str | None, typer.Option(help="As data.chat_template_kwargs, in JSON.")] = None,
    as_chat: Annotated[bool, typer.Option("--as-chat", help="As data.as_chat.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only errors.")] = False,
    settings: Settings = None,
) -> None:
    """Reward and sequence KL of policies at several temperatures, beside best of n and the optimum."""
    from preftune.cli.settings import chat_options, data_section
    from preftune.config.schema import NOT_SAMPLED

    listed, short = numbers(temperatures), chat_options(chat_template, chat_template_kwargs, as_chat)
    section = data_section(prompts, settings, short, command="preftune eval frontier", unused=NOT_SAMPLED)
    from preftune.train.display import Display
    from preftune.workflows.frontier import FrontierOptions
    from preftune.workflows.frontier import run as run_frontier

    frontier_options = FrontierOptions(
        reference,
        tuple(policy),
        section,
        reward,
        listed,
        samples,
        yardstick,
        max_new_tokens,
        max_prompts,
        seed,
        dtype,
    )
    run_frontier(frontier_options, out, Display(quiet))


@app.command()
def winrate(
    policy: Annotated[
        list[str],
        typer.Option(help="Tuned model, run folder, checkpoint, or best:N,MODEL,REWARD; can be repeated."),
    ],
    data: Annotated[str, typer.Option(help="Preference data or demonstrations: prompts, and what to compare with.")],
    judge: Annotated[
        str, typer.Option(help="A reward, lm:FOLDER, first, random; with --judge-url a model's name there.")
    ],
    against: Annotated[
        str | None, typer.Option(help="Another model; left out, the responses that the data prefer.")
    ] = None,
    temperatures: Annotated[str, typer.Option(help="Sampling temperatures, separated by commas.")] = "0.25,0.5,0.75,1",
    out: Annotated[Path, typer.Option(help="Folder for samples, verdicts and results.")] = Path("winrate"),
    max_new_tokens: Annotated[int, typer.Option(help="Where a response is cut off.", min=1)] = 128,
    max_prompts: Annotated[int | None, typer.Option(help="Use only the first N prompts.", min=1)] = None,
    task: Annotated[
        str, typer.Option(help="general, dialogue or summarisation: the instructions of a chat model or lm: as judge.")
    ] = "general",
    judge_url: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the server's API key.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests in parallel.", min=1)] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a response.", min=0.1, max=86400)] = 120.0,
    server_settings: Annotated[
        str | None, typer.Option(help="JSON object to add to every request; null removes a setting.")
    ] = None,
    price_in: Annotated[float, typer.Option(help="Price per million input tokens, for the estimate.", min=0)] = 0.0,
    price_out: Annotated[float, typer.Option(help="Price per million output tokens, for the estimate.", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of samples and intervals.", min=0)] = 0,
    dtype: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    chat_template: Annotated[str | None, typer.Option(help="As data.chat_template.")] = None,
    chat_template_kwargs: Annotated[str | None, typer.Option(help="As data.chat_template_kwargs, in JSON.")] = None,
    as_chat: Annotated[bool, typer.Option("--as-chat", help="As data.as_chat.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report the cost of the server, ask it nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only errors.")] = False,
    settings: Settings = None,
) -> None:
    """How often a judge prefers a policy's responses, in both orders, at several sampling temperatures."""
    from preftune.cli.settings import chat_options, data_section
    from preftune.config.schema import NOT_JUDGED

    listed, short = numbers(temperatures), chat_options(chat_template, chat_template_kwargs, as_chat)
    section = data_section(data, settings, short, command="preftune eval winrate", unused=NOT_JUDGED)
    from preftune.client import Client
    from preftune.train.display import Display
    from preftune.workflows.winrate import WinRateOptions
    from preftune.workflows.winrate import run as run_winrate

    winrate_options = WinRateOptions(
        tuple(policy),
        section,
        judge,
        against,
        listed,
        max_new_tokens,
        max_prompts,
        task,
        seed,
        dtype,
        server=Client.from_options(judge_url, judge, api_key_env, concurrency, timeout, server_settings),
        price_in=price_in,
        price_out=price_out,
    )
    run_winrate(winrate_options, out, Display(quiet), dry_run)


@app.command("length-controlled")
def length_controlled(
    annotations: Annotated[Path, typer.Argument(help="AlpacaEval's annotations.json of one model.")],
    gamed: Annotated[Path, typer.Option(help="df_gamed.csv of the dataset tatsu-lab/alpaca_eval.")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("length-controlled.json"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only errors.")] = False,
) -> None:
    """AlpacaEval's length-controlled win rate, from its annotations and its gamed baselines."""
    from preftune.train.display import Display
    from preftune.workflows.length_controlled import run as run_alpaca

    run_alpaca(annotations, gamed, out, Display(quiet))


def numbers(text: str) -> tuple[float, ...]:
    """Temperatures from a list with commas."""
    from preftune.errors import ConfigError

    try:
        return tuple(float(t) for t in text.split(","))
    except ValueError:
        raise ConfigError(f"not numbers: {text!r}", where="--temperatures", fix="e.g. 0.7,1.0") from None
