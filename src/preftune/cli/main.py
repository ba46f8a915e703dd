"""The command line: arguments, and the exit code of each outcome."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from preftune import stop
from preftune.cli import config as config_commands
from preftune.cli import data as data_commands
from preftune.cli import evaluate as evaluate_commands
from preftune.cli import options as opt
from preftune.cli.cluster import planned
from preftune.cli.completion import complete_line, completion
from preftune.cli.export import export
from preftune.cli.import_config import import_config
from preftune.cli.init import init
from preftune.cli.label import label
from preftune.cli.launch import RAW, is_launch, launch
from preftune.cli.options import Config, Data, DryRun, Lora, Model, Out, Quiet
from preftune.cli.outcome import JSON, Command, Outcome, command_in, failure, interruption, run_result, usage_error
from preftune.cli.report import report
from preftune.cli.talk import chat
from preftune.cli.training import config_from, instead_of
from preftune.config.schema import TunedConfig
from preftune.errors import Stopped, for_shell
from preftune.owners import ALLOW, allowing
from preftune.ranks.join import Ranks, join

DOCS = "https://github.com/preftune/preftune/blob/main/docs/index.md"

app = typer.Typer(
    name="preftune",
    help="Train language models on preferences. To see a complete run, start with: preftune demo\n\n"
    f"Documentation: {DOCS}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_commands.app, name="data")
app.add_typer(evaluate_commands.app, name="eval")
app.add_typer(config_commands.app, name="config")

UsageError: Any = typer.BadParameter.__bases__[0]  # click's class, or the copy of it in newer versions of typer


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,  # noqa: ARG001
    allow_code: Annotated[  # noqa: ARG001
        bool, typer.Option(ALLOW, help="Also run Python files and configs that other users can have written.")
    ] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(f"preftune {version_of('preftune')}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all files of the demo.")] = Path("demo-run"),
    fast: Annotated[bool, typer.Option("--fast", help="Run a smaller demo, in about 20 seconds.")] = False,
    with_ppo: Annotated[
        bool, typer.Option("--with-ppo", help="Also train a reward model and run PPO, for comparison.")
    ] = False,
) -> dict[str, Any]:
    """Train a small language model on preferences, offline. Takes about 100 seconds and reports the result."""
    from preftune.demo.run import run as run_demo

    run_demo(out, fast=fast, with_ppo=with_ppo)
    return {"out": out}


app.command()(init)
app.command()(import_config)
app.command()(export)
app.command(context_settings=RAW)(launch)
app.command()(report)
app.command()(completion)
app.command("complete-line", hidden=True)(complete_line)


@app.command()
def sft(
    arguments: Config = None,
    model: Model = None,
    data: Data = None,
    lora: Lora = False,
    out: Out = None,
    dry_run: DryRun = False,
    ranks: opt.Ranks = None,
    memory: opt.Memory = None,
    tflops: opt.Tflops = None,
    bandwidth: opt.Bandwidth = None,
    quiet: Quiet = False,
) -> dict[str, Any]:
    """Fine-tune a model on demonstrations. With preference data, it is fine-tuned on the chosen responses."""
    config = config_from("sft", arguments or (), model, data or (), lora, out)
    plan = planned(config, dry_run, quiet, ranks, memory, tflops, bandwidth)
    return plan or train("methods.sft", config, dry_run, quiet)


@app.command()
def dpo(
    arguments: Config = None,
    model: Model = None,
    data: Data = None,
    lora: Lora = False,
    out: Out = None,
    dry_run: DryRun = False,
    ranks: opt.Ranks = None,
    memory: opt.Memory = None,
    tflops: opt.Tflops = None,
    bandwidth: opt.Bandwidth = None,
    quiet: Quiet = False,
) -> dict[str, Any]:
    """Train a model on preferences with DPO or a different loss. All losses: https://github.com/preftune/preftune/blob/main/docs/lookup/losses.md"""
    config = config_from("dpo", arguments or (), model, data or (), lora, out)
    plan = planned(config, dry_run, quiet, ranks, memory, tflops, bandwidth)
    return plan or train("methods.dpo", config, dry_run, quiet)


@app.command()
def reward(
    arguments: Config = None,
    model: Model = None,
    data: Data = None,
    lora: Lora = False,
    out: Out = None,
    dry_run: DryRun = False,
    ranks: opt.Ranks = None,
    memory: opt.Memory = None,
    tflops: opt.Tflops = None,
    bandwidth: opt.Bandwidth = None,
    quiet: Quiet = False,
) -> dict[str, Any]:
    """Train a Bradley-Terry reward model on preference data. It is a language model with a scalar head."""
    config = config_from("reward", arguments or (), model, data or (), lora, out)
    plan = planned(config, dry_run, quiet, ranks, memory, tflops, bandwidth)
    return plan or train("methods.reward", config, dry_run, quiet)


@app.command()
def ppo(
    arguments: Config = None,
    model: Model = None,
    data: Data = None,
    lora: Lora = False,
    out: Out = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> dict[str, Any]:
    """Train a model with PPO. The reward is a reward model, VADER or your own function."""
    return train("methods.ppo", config_from("ppo", arguments or (), model, data or (), lora, out), dry_run, quiet)


@app.command()
def iterate(
    arguments: Config = None,
    model: Model = None,
    data: Data = None,
    lora: Lora = False,
    out: Out = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> dict[str, Any]:
    """Run rounds of sampling and preference training. Each round trains on pairs of samples of the current policy."""
    return train(
        "workflows.iterate", config_from("iterate", arguments or (), model, data or (), lora, out), dry_run, quiet
    )


def train(module: str, config: TunedConfig, dry_run: bool, quiet: bool) -> dict[str, Any]:
    """Run a training command, and return its result.

    The config is checked before the training module is imported, which takes seconds.
    """
    from preftune.lifecycle.early_checks import check_config

    check_config(config)
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    final = import_module(f"preftune.{module}").run(config, display=display, dry_run=dry_run)
    return run_result(config.out, final, dry_run)


@app.command()
def sample(
    model: Annotated[
        str, typer.Option(help="Model, run folder or checkpoint. With --server: the model's name on the server.")
    ],
    prompts: Annotated[str, typer.Option(help="Rows with `prompt`, or preference data; only the prompts are used.")],
    out: Annotated[Path, typer.Option(help="File to write, one JSON object per prompt.")] = Path("samples.jsonl"),
    n: Annotated[int, typer.Option("--n", help="Responses per prompt.", min=1)] = 1,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature. 0 always takes the most likely token.", min=0)
    ] = 1.0,
    top_p: Annotated[
        float,
        typer.Option(help="Sample from the most likely tokens whose probabilities add up to this.", min=0, max=1),
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k most likely tokens (0 = no limit).", min=0)] = 0,
    max_new_tokens: opt.MaxNewTokens = 64,
    seed: opt.Seed = 0,
    max_prompts: opt.MaxPrompts = None,
    dtype: opt.Dtype = "auto",
    chat_template: opt.ChatTemplate = None,
    chat_template_kwargs: opt.ChatTemplateKwargs = None,
    as_chat: opt.AsChat = None,
    server: opt.ServerUrl = None,
    api_key_env: opt.ApiKeyEnv = None,
    concurrency: opt.Concurrency = 8,
    timeout: opt.Timeout = 120.0,
    server_settings: opt.ServerSettings = None,
    quiet: Quiet = False,
    settings: opt.Settings = None,
) -> dict[str, Any]:
    """Sample responses to prompts from a model or a server. Rerun the same command to resume."""
    from preftune.cli.settings import chat_options, data_section
    from preftune.config.schema import UNUSED_BY_SAMPLE

    chat = chat_options(chat_template, chat_template_kwargs, as_chat)
    section = data_section(prompts, settings, chat, command="preftune sample", unused=UNUSED_BY_SAMPLE)
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    from preftune.client import Client
    from preftune.model.generate import Sampling
    from preftune.workflows import sample as workflow

    client = Client.from_options(server, model, api_key_env, concurrency, timeout, server_settings)
    sampling = Sampling(n, max_new_tokens, temperature, top_p, top_k, seed)
    options = workflow.SampleOptions(model, section, sampling, max_prompts, dtype, client)
    return {"out": workflow.run(options, out, display)}


@app.command()
def pairs(
    samples: Annotated[str, typer.Argument(help="File written by preftune sample.", metavar="SAMPLES.jsonl")],
    reward: Annotated[
        str | None,
        typer.Option(help="A reward, as in preftune eval frontier. By default: the `scores` of the samples."),
    ] = None,
    select: Annotated[
        str, typer.Option(help="How to select pairs: best-worst, best-random, all, top-k (for sft) or rso.")
    ] = "best-worst",
    out: Annotated[Path, typer.Option(help="File to write, one group per prompt.")] = Path("prefs.jsonl"),
    gap: Annotated[
        float, typer.Option(help="Minimum difference in reward between the two responses of a pair.", min=0)
    ] = 0.0,
    soft: Annotated[
        bool, typer.Option("--soft", help="Label each pair with the probability sigmoid(difference in reward).")
    ] = False,
    k: Annotated[int, typer.Option("--k", help="Number of responses that top-k keeps.", min=1)] = 1,
    beta: Annotated[float, typer.Option(help="Temperature of the rejection sampling in rso.", min=1e-6)] = 0.1,
    seed: Annotated[int, typer.Option(help="Random seed of best-random and rso.", min=0)] = 0,
    quiet: Quiet = False,
) -> dict[str, Any]:
    """Make preference data from samples and their rewards."""
    from preftune.data.select import selection_options

    selection = selection_options(select, gap, soft, k, beta, seed)
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    from preftune.lifecycle.policy import device_of
    from preftune.rewards.open import open_reward
    from preftune.workflows.pairs import run as run_pairs

    scorer = open_reward(reward, "--reward", device=device_of(None)) if reward else None
    return {"out": out, "samples": run_pairs(samples, out, selection, scorer, display).record()}


app.command()(label)


@app.command()
def score(
    data: Annotated[str, typer.Option(help="Preference data: file, folder or Hub id.")],
    policy: Annotated[str | None, typer.Option(help="Trained model: folder, run or Hub id.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Model that the policy was trained from: folder, run or Hub id.")
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="Reward to use instead of --policy and --reference: a reward model, file.py:function, ..."),
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write, one JSON object per pair.")] = Path("scores.jsonl"),
    beta: Annotated[float, typer.Option(help="Scale of the implicit reward.", min=0)] = 0.1,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Also write the reward of every token, and an HTML page of them.")
    ] = False,
    mode: Annotated[
        str, typer.Option(help="corrected, or compatible: also print the scores of RewardBench's own program.")
    ] = "corrected",
    data_format: opt.DataFormat = None,
    max_length: Annotated[
        int | None, typer.Option(help="Maximum number of tokens. By default: 1024, or the model's limit.", min=2)
    ] = None,
    dtype: opt.Dtype = "auto",
    chat_template: opt.ChatTemplate = None,
    chat_template_kwargs: opt.ChatTemplateKwargs = None,
    as_chat: opt.AsChat = None,
    quiet: Quiet = False,
    settings: opt.Settings = None,
) -> dict[str, Any]:
    """Score preference pairs with a reward. The implicit reward is beta * log(policy / reference)."""
    from preftune.cli.settings import chat_options, data_section
    from preftune.config.schema import UNUSED_BY_SCORE

    limits = {"--format": data_format, "--max-length": max_length}
    options = limits | chat_options(chat_template, chat_template_kwargs, as_chat)
    section = data_section(data, settings, options, command="preftune score", unused=UNUSED_BY_SCORE)
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    from preftune.workflows import score as workflow

    score_options = workflow.options_for((policy, reference, reward), section, beta, tokens, dtype, mode)
    written = workflow.run(score_options, out, display)
    return {"out": written, "summary": json.loads(written.with_name(f"{written.stem}.summary.json").read_text())}


app.command()(chat)


@app.command()
def doctor() -> dict[str, Any]:
    """Print versions, devices, speed and caches of this machine. Add the output to bug reports."""
    from preftune.cli.torch_import import import_torch

    import_torch()
    from preftune.cli.doctor import facts, lines_of

    result = facts()
    print("\n".join(lines_of(result)))
    return result


for _app in (app, data_commands.app, evaluate_commands.app):
    for _command in _app.registered_commands:
        if _command.callback not in (chat, completion, complete_line, launch):
            _command.cls = Command

INTERRUPTED = 130  # what typer returns after KeyboardInterrupt


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors go to stderr, with a traceback only after --debug.

    With --json, stdout has one JSON object, and everything else goes to stderr.
    """
    if JSON not in arguments or is_launch(arguments):
        return _outcome(arguments).code
    with redirect_stdout(sys.stderr):
        outcome = _outcome(arguments)
    try:
        print(outcome.document(command_in(arguments, app)), flush=True)
    except BrokenPipeError:
        _no_stdout()
    return outcome.code


def _outcome(arguments: Sequence[str]) -> Outcome:
    """Run one command, and return its outcome."""
    ranks: Ranks | None = None
    with stop.guard(), allowing(ALLOW in arguments):
        try:
            with stop.interruptible():
                ranks = join(list(arguments))
                others = [a for a in arguments if a not in ("--debug", ALLOW, JSON) or is_launch(arguments)]
                value = app(others, standalone_mode=False)
                if ranks:
                    ranks.finish(interrupted=value == INTERRUPTED)
        except typer.Exit as done:
            if ranks:
                ranks.finish(interrupted=False)
            return Outcome(done.exit_code)
        except (Exception, KeyboardInterrupt) as error:
            return _failure(error, arguments, ranks)
        if value == INTERRUPTED:
            return interruption()
        return Outcome(value) if isinstance(value, int) else Outcome(result=value or {})


def _failure(error: BaseException, arguments: Sequence[str], ranks: Ranks | None) -> Outcome:
    """Print why a command failed or stopped, and return its outcome. One of several ranks ends here."""
    if ranks:
        ranks.fail(error, lambda: _failure(error, arguments, None).code)
    if isinstance(error, UsageError):
        return usage_error(error, for_shell(instead_of(error, arguments)), command_in(arguments, app))
    if isinstance(error, BrokenPipeError):
        _no_stdout()
        return Outcome()
    debug = "--debug" in arguments  # accepted anywhere on the command line
    # a library may have turned the request to stop into an error
    is_request = isinstance(error, KeyboardInterrupt | typer.Abort) or stop.caused(error)
    return interruption() if is_request and not isinstance(error, Stopped) else failure(error, debug)


def _no_stdout() -> None:
    """Discard what is written to stdout, because its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
