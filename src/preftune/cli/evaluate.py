"""The commands `preftune eval frontier`, `winrate` and `length-controlled`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from preftune.cli import benchmarks
from preftune.cli import options as opt

app = typer.Typer(help="Compare trained models.", no_args_is_help=True)
app.command()(benchmarks.harness)
app.command()(benchmarks.answers)


@app.callback()
def evaluate() -> None:
    """Compare trained models."""


@app.command()
def frontier(
    reference: Annotated[str, typer.Option(help="Model that the policies were trained from: folder, run or Hub id.")],
    policy: Annotated[list[str], typer.Option(help="Model folder, run folder, checkpoint or Hub id. Can be repeated.")],
    prompts: Annotated[str, typer.Option(help="Rows with `prompt`, or preference data; only the prompts are used.")],
    reward: Annotated[
        str,
        typer.Option(
            help="Reward: a reward model, implicit:POLICY,REFERENCE, judge:URL,MODEL, file.py:function or vader."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for frontier.json and frontier.html.")] = Path("frontier"),
    temperatures: opt.Temperatures = "1",
    samples: Annotated[int, typer.Option(help="Responses per prompt from each policy.", min=1)] = 8,
    yardstick: Annotated[
        int, typer.Option(help="Responses per prompt from the reference, for best of n and the optimum.", min=2)
    ] = 128,
    max_new_tokens: opt.MaxNewTokens = 64,
    max_prompts: opt.MaxPrompts = None,
    seed: opt.Seed = 0,
    dtype: opt.Dtype = "auto",
    chat_template: opt.ChatTemplate = None,
    chat_template_kwargs: opt.ChatTemplateKwargs = None,
    as_chat: opt.AsChat = None,
    quiet: opt.Quiet = False,
    settings: opt.Settings = None,
) -> dict[str, Any]:
    """Measure reward and KL of policies. Compares them with best of n and the optimum."""
    from preftune.cli.settings import chat_options, data_section
    from preftune.config.schema import UNUSED_BY_SAMPLE

    levels, chat = numbers(temperatures), chat_options(chat_template, chat_template_kwargs, as_chat)
    section = data_section(prompts, settings, chat, command="preftune eval frontier", unused=UNUSED_BY_SAMPLE)
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    from preftune.workflows.frontier import FrontierOptions, run

    options = FrontierOptions(
        reference, tuple(policy), section, reward, levels, samples, yardstick, max_new_tokens, max_prompts, seed, dtype
    )
    return {"out": out, "points": run(options, out, display)}


@app.command()
def winrate(
    policy: Annotated[
        list[str],
        typer.Option(help="Model folder, run folder, checkpoint, Hub id or best:N,MODEL,REWARD. Can be repeated."),
    ],
    data: Annotated[str, typer.Option(help="Preference data or demonstrations: the prompts and their responses.")],
    judge: Annotated[
        str,
        typer.Option(help="A reward, lm:FOLDER, first or random. With --judge-url: the model's name on the server."),
    ],
    against: Annotated[
        str | None, typer.Option(help="Model to compare with. By default: the preferred responses in the data.")
    ] = None,
    temperatures: opt.Temperatures = "0.25,0.5,0.75,1",
    out: Annotated[Path, typer.Option(help="Folder for samples, verdicts and results.")] = Path("winrate"),
    max_new_tokens: opt.MaxNewTokens = 128,
    max_prompts: opt.MaxPrompts = None,
    task: Annotated[
        str, typer.Option(help="Instructions for a language model as judge: general, dialogue or summarisation.")
    ] = "general",
    judge_url: opt.ServerUrl = None,
    api_key_env: opt.ApiKeyEnv = None,
    concurrency: opt.Concurrency = 8,
    timeout: opt.Timeout = 120.0,
    server_settings: opt.ServerSettings = None,
    price_in: Annotated[float, typer.Option(help="Price per million input tokens, for the estimate.", min=0)] = 0.0,
    price_out: Annotated[float, typer.Option(help="Price per million output tokens, for the estimate.", min=0)] = 0.0,
    seed: opt.Seed = 0,
    dtype: opt.Dtype = "auto",
    chat_template: opt.ChatTemplate = None,
    chat_template_kwargs: opt.ChatTemplateKwargs = None,
    as_chat: opt.AsChat = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate the cost of the judge's server without sending requests.")
    ] = False,
    quiet: opt.Quiet = False,
    settings: opt.Settings = None,
) -> dict[str, Any]:
    """Measure how often a judge prefers a policy's responses. Every pair is judged in both orders."""
    from preftune.cli.settings import chat_options, data_section
    from preftune.config.schema import UNUSED_BY_WINRATE

    levels, chat = numbers(temperatures), chat_options(chat_template, chat_template_kwargs, as_chat)
    section = data_section(data, settings, chat, command="preftune eval winrate", unused=UNUSED_BY_WINRATE)
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    from preftune.client import Client
    from preftune.workflows.winrate import WinRateOptions, run

    server = Client.from_options(judge_url, judge, api_key_env, concurrency, timeout, server_settings)
    limits = (max_new_tokens, max_prompts, task, seed, dtype)
    values = (tuple(policy), section, judge, against, levels, *limits)
    options = WinRateOptions(*values, server=server, price_in=price_in, price_out=price_out)
    return {"out": out, "dry_run": dry_run, "win_rates": run(options, out, display, dry_run)}


@app.command("length-controlled")
def length_controlled(
    annotations: Annotated[
        Path,
        typer.Argument(help="File annotations.json of one model, written by AlpacaEval.", metavar="ANNOTATIONS.json"),
    ],
    gamed: Annotated[Path, typer.Option(help="File df_gamed.csv of the dataset tatsu-lab/alpaca_eval.")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("length-controlled.json"),
    quiet: opt.Quiet = False,
) -> dict[str, Any]:
    """Compute AlpacaEval's length-controlled win rate. It needs the annotations and the gamed baselines."""
    from preftune.train.display import Display
    from preftune.workflows.length_controlled import run

    return {"out": out, "result": run(annotations, gamed, out, Display(quiet))}


def numbers(text: str) -> tuple[float, ...]:
    """Parse temperatures that are separated by commas."""
    from preftune.errors import ConfigError

    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        what = f"{text!r} is not a list of numbers"
        raise ConfigError(what, where="--temperatures", fix="separate numbers by commas, e.g. 0.7,1.0") from None
