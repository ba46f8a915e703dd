"""The commands `preftune eval harness` and `preftune eval answers`: models in other evaluation programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
) -> None:
    """Run lm-evaluation-harness on a model. Its results are added to the run's report and model card."""
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    from preftune.export.harness import HarnessOptions, run

    run(model, HarnessOptions(tasks, tasks_dir, few_shot, limit, chat, batch_size, dtype), out, display)
