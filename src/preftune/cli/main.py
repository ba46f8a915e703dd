"""Argument parsing and the mapping of outcomes to exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from preftune.cli import data as data_commands
from preftune.cli import evaluate as evaluate_commands
from preftune.cli.init import init
from preftune.cli.options import Settings
from preftune.errors import ConfigError, PreftuneError

app = typer.Typer(
    name="preftune",
    help="Tune language models on preferences. Start with: preftune demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_commands.app, name="data")
app.add_typer(evaluate_commands.app, name="eval")

UsageError: Any = typer.BadParameter.__bases__[0]  # click's own, or the copy of it that newer typer brings
Config = Annotated[Path, typer.Argument(help="YAML file of the run.", metavar="CONFIG.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes to the file.", metavar="[SECTION.KEY=VALUE]...")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, train nothing.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only errors.")]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001 - run
) -> None:
    if version:
        from preftune import __version__

        print(f"preftune {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo-run"),
    fast: Annotated[bool, typer.Option("--fast", help="A smaller world, in 20 seconds.")] = False,
    with_ppo: Annotated[bool, typer.Option("--with-ppo", help="Also a reward model and PPO, for comparison.")] = False,
) -> None:
    """Offline first run: makes data, trains a small model, tunes it with DPO, shows the frontier."""
    from preftune.demo.run import run as run_demo

    run_demo(out, fast=fast, with_ppo=with_ppo)


app.command()(init)


@app.command()
def sft(config: Config, overrides: Overrides = None, dry_run: DryRun = False, quiet: Quiet = False) -> None:
    """Supervised fine-tuning on demonstrations, or on the chosen responses of preference data."""
    tune("sft", "schema.SFTConfig", config, overrides, dry_run, quiet)


@app.command()
def dpo(config: Config, overrides: Overrides = None, dry_run: DryRun = False, quiet: Quiet = False) -> None:
    """Preference training: DPO and every other loss in docs/losses.md."""
    tune("dpo", "schema.DPOConfig", config, overrides, dry_run, quiet)


@app.command()
def reward(config: Config, overrides: Overrides = None, dry_run: DryRun = False, quiet: Quiet = False) -> None:
    """Bradley-Terry reward model: a scalar head on a language model, from preference data."""
    tune("reward", "schema.RewardConfig", config, overrides, dry_run, quiet)


@app.command()
def ppo(config: Config, overrides: Overrides = None, dry_run: DryRun = False, quiet: Quiet = False) -> None:
    """PPO against a reward model, VADER or a reward function of your own: the pipeline that DPO replaces."""
    tune("ppo", "sampling.PPOConfig", config, overrides, dry_run, quiet)


@app.command()
def iterate(config: Config, overrides: Overrides = None, dry_run: DryRun = False, quiet: Quiet = False) -> None:
    """Rounds of sampling, rewarding, pairing and preference training, each with data from the current policy."""
    tune("iterate", "sampling.IterateConfig", config, overrides, dry_run, quiet)


def tune(method: str, kind: str, config: Path, overrides: list[str] | None, dry_run: bool, quiet: bool) -> None:
    """Read the config, which takes no time; then import what trains, which takes seconds."""
    from preftune.config.load import load

    module, _, name = kind.partition(".")
    resolved = load(getattr(importlib.import_module(f"preftune.config.{module}"), name), config, overrides or ())
    from preftune.train.display import Display

    run_method = importlib.import_module(f"preftune.methods.{method}").run
    run_method(resolved, display=Display(quiet), dry_run=dry_run)


@app.command()
def sample(
    model: Annotated[str, typer.Option(help="Model, run folder or checkpoint; with --server, the model's name there.")],
    prompts: Annotated[str, typer.Option(help="Rows with `prompt`, or preference data, whose prompts are taken.")],
    out: Annotated[Path, typer.Option(help="File to write, one JSON object per prompt.")] = Path("samples.jsonl"),
    n: Annotated[int, typer.Option("--n", help="Responses per prompt.", min=1)] = 1,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.", min=0)] = 1.0,
    top_p: Annotated[
        float,
        typer.Option(help="Sample from the top tokens up to this probability.", min=0, max=1),
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k most likely tokens (0 = no limit).", min=0)] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Where a response is cut off.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Seed of all samples.", min=0)] = 0,
    max_prompts: Annotated[int | None, typer.Option(help="Use only the first N prompts.", min=1)] = None,
    dtype: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    chat_template: Annotated[str | None, typer.Option(help="As data.chat_template.")] = None,
    chat_template_kwargs: Annotated[str | None, typer.Option(help="As data.chat_template_kwargs, in JSON.")] = None,
    as_chat: Annotated[bool, typer.Option("--as-chat", help="As data.as_chat.")] = False,
    server: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the server's API key.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests in parallel.", min=1)] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a response.", min=0.1, max=86400)] = 120.0,
    server_settings: Annotated[
        str | None, typer.Option(help="JSON object to add to every request; null removes a setting.")
    ] = None,
    quiet: Quiet = False,
    settings: Settings = None,
) -> None:
    """Sample responses to prompts, from a model or from a server. Rerun the same command to resume."""
    from preftune.cli.settings import chat_options, data_section
    from preftune.config.schema import NOT_SAMPLED

    short = chat_options(chat_template, chat_template_kwargs, as_chat)
    section = data_section(prompts, settings, short, command="preftune sample", unused=NOT_SAMPLED)
    from preftune.client import Client
    from preftune.model.generate import Sampling
    from preftune.train.display import Display
    from preftune.workflows.sample import SampleOptions
    from preftune.workflows.sample import run as run_sample

    asked = Client.from_options(server, model, api_key_env, concurrency, timeout, server_settings)
    sampling = Sampling(n, max_new_tokens, temperature, top_p, top_k, seed)
    wanted = SampleOptions(model, prompts, sampling, max_prompts, dtype, server=asked, settings=section)
    run_sample(wanted, out, Display(quiet))


@app.command()
def pairs(
    samples: Annotated[str, typer.Argument(help="What preftune sample wrote.", metavar="SAMPLES.jsonl")],
    reward: Annotated[str | None, typer.Option(help="Reward; without it, the samples' own `scores` are used.")] = None,
    select: Annotated[str, typer.Option(help="best-worst, best-random, all, top-k (for sft) or rso.")] = "best-worst",
    out: Annotated[Path, typer.Option(help="File to write, one group per prompt.")] = Path("prefs.jsonl"),
    gap: Annotated[float, typer.Option(help="Smallest difference in score of a pair.", min=0)] = 0.0,
    soft: Annotated[bool, typer.Option("--soft", help="Label a pair with sigmoid(difference in score).")] = False,
    k: Annotated[int, typer.Option("--k", help="Responses that top-k keeps.", min=1)] = 1,
    beta: Annotated[float, typer.Option(help="Beta of rso.", min=1e-6)] = 0.1,
    seed: Annotated[int, typer.Option(help="For best-random and rso.", min=0)] = 0,
    quiet: Quiet = False,
) -> None:
    """Make preference data of samples and their rewards."""
    from preftune.data.select import selecting

    how = selecting(select, gap, soft, k, beta, seed)
    from preftune.lifecycle.prepare import device_of
    from preftune.rewards.open import open_reward
    from preftune.train.display import Display
    from preftune.workflows.pairs import run as run_pairs

    judge = open_reward(reward, "--reward", device=device_of(None)) if reward else None
    run_pairs(samples, out, how, judge, Display(quiet))


@app.command()
def score(
    data: Annotated[str, typer.Option(help="Preference data: file, folder or Hub id.")],
    policy: Annotated[str | None, typer.Option(help="Tuned model: folder, run or Hub id.")] = None,
    reference: Annotated[str | None, typer.Option(help="What it was tuned from.")] = None,
    reward: Annotated[str | None, typer.Option(help="A reward instead of both, as in preftune pairs.")] = None,
    out: Annotated[Path, typer.Option(help="File to write, one JSON object per pair.")] = Path("scores.jsonl"),
    beta: Annotated[float, typer.Option(help="Scale of the implicit reward.", min=0)] = 0.1,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Also the reward of every token, and a page of them.")
    ] = False,
    mode: Annotated[
        str, typer.Option(help="corrected, or compatible: RewardBench's own figures beside them.")
    ] = "corrected",
    data_format: Annotated[str | None, typer.Option("--format", help="As data.format.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="As data.max_length; by default 1024, or less if the model reads less.", min=2)
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    chat_template: Annotated[str | None, typer.Option(help="As data.chat_template.")] = None,
    chat_template_kwargs: Annotated[str | None, typer.Option(help="As data.chat_template_kwargs, in JSON.")] = None,
    as_chat: Annotated[bool, typer.Option("--as-chat", help="As data.as_chat.")] = False,
    quiet: Quiet = False,
    settings: Settings = None,
) -> None:
    """Implicit rewards beta * log(policy / reference) of every pair, or any reward; accuracy, by subset where known."""
    from preftune.cli.settings import chat_options, data_section
    from preftune.config.schema import NOT_SCORED

    short = {
        "--format": data_format,
        "--max-length": max_length,
        **chat_options(chat_template, chat_template_kwargs, as_chat),
    }
    section = data_section(data, settings, short, command="preftune score", unused=NOT_SCORED)
    from preftune.train.display import Display
    from preftune.workflows.score import run as run_score
    from preftune.workflows.score import scoring_of

    models = policy, reference, reward
    scoring = scoring_of(models, data, beta, tokens, "auto", None, dtype, None, mode, settings=section)
    run_score(scoring, out, Display(quiet))


@app.command()
def doctor() -> None:
    """Versions, devices, precision, threads, caches: what will be fast here, and what to paste into a bug report."""
    from preftune.cli.doctor import report

    print(report())


INTERRUPTED = 130


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors go to stderr, without traceback unless --debug."""
    debug = "--debug" in arguments  # at any place on the line
    try:
        code = app([a for a in arguments if a != "--debug"], standalone_mode=False)
    except PreftuneError as error:
        print(error, file=sys.stderr)
        if debug:
            traceback.print_exc()
        return error.exit_code
    except UsageError as error:
        error.show()
        return 2
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        code = _unexpected(error)
        if debug:
            traceback.print_exc()
        return code
    if code == INTERRUPTED:  # which typer makes of KeyboardInterrupt
        print("stopped: rerun the same command to resume", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _unexpected(error: Exception) -> int:
    """Report an exception that no part of preftune expects; the exit code."""
    from preftune.resolve import in_words, place_of

    place = place_of(error)  # a line in a file of the user's, such as the backward pass of a loss
    if place:
        print(ConfigError(in_words(error), where=place, fix="repair this file"), file=sys.stderr)
        return ConfigError.exit_code
    print(f"internal error: {type(error).__name__}: {error}", file=sys.stderr)
    print("  fix: this is a defect of preftune; please report it with the output of --debug", file=sys.stderr)
    return 1
