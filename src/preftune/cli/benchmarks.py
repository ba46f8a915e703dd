"""The commands `preftune eval harness` and `preftune eval answers`: models in other evaluation programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from preftune.cli import options as opt


def harness(
    model: Annotated[str, typer.Argument(help="Run folder, model folder or adapter folder.", metavar="RUN")],
    tasks: Annotated[str, typer.Option(help="Names of tasks, separated by commas.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the results. By default: RUN/harness.")] = None,
    tasks_dir: Annotated[Path | None, typer.Option(help="Folder with task files (YAML) of your own.")] = None,
    few_shot: Annotated[
        int | None, typer.Option(help="Examples in every prompt. By default: as the task says.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Rows per task.", min=1)] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Apply the model's chat template.")] = False,
    batch_size: Annotated[str, typer.Option(help="Rows per batch, or auto.")] = "8",
    dtype: Annotated[str, typer.Option(help="Precision: auto (as saved), fp32, bf16 or fp16.")] = "auto",
    quiet: opt.Quiet = False,
) -> dict[str, Any]:
    """Run lm-evaluation-harness on a model. Its results are added to the run's report and model card."""
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    from preftune.export.harness import HarnessOptions, run

    options = HarnessOptions(tasks, tasks_dir, few_shot, limit, chat, batch_size, dtype)
    return {"out": run(model, options, out, display)}


def answers(
    model: Annotated[
        str, typer.Option(help="Model, run folder or checkpoint. With --server: the model's name on the server.")
    ],
    questions: Annotated[Path, typer.Option(help="Question file of the benchmark.")],
    benchmark: Annotated[str, typer.Option(help="alpaca-eval, mt-bench or arena-hard.")],
    out: Annotated[Path, typer.Option(help="File to write, in the format of the benchmark.")],
    name: Annotated[str | None, typer.Option(help="Name of the model in the answers. By default: --model.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature. By default: 0; for mt-bench, by category.", min=0)
    ] = None,
    max_new_tokens: opt.MaxNewTokens = 1024,
    max_questions: Annotated[int | None, typer.Option(help="Use only the first N questions.", min=1)] = None,
    seed: opt.Seed = 0,
    dtype: opt.Dtype = "auto",
    chat_template: opt.ChatTemplate = None,
    chat_template_kwargs: opt.ChatTemplateKwargs = None,
    server: opt.ServerUrl = None,
    api_key_env: opt.ApiKeyEnv = None,
    concurrency: opt.Concurrency = 8,
    timeout: opt.Timeout = 120.0,
    server_settings: opt.ServerSettings = None,
    quiet: opt.Quiet = False,
) -> dict[str, Any]:
    """Answer the questions of a public benchmark.

    AlpacaEval, MT-Bench or Arena-Hard. Rerun the same command to resume.
    """
    from preftune.cli.settings import chat_options

    options = chat_options(chat_template, chat_template_kwargs, False)
    named = {"chat_template": options["--chat-template"], "chat_template_kwargs": options["--chat-template-kwargs"]}
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    from preftune.client import Client
    from preftune.workflows.answers import AnswerOptions, run

    client = Client.from_options(server, model, api_key_env, concurrency, timeout, server_settings)
    chat = {key: value for key, value in named.items() if value is not None}
    limits = (temperature, max_new_tokens, max_questions, seed, dtype)
    return {"out": run(AnswerOptions(model, benchmark, name or model, *limits, client, chat), questions, out, display)}
