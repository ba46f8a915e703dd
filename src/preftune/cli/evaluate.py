"""preftune eval ..."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure tuned models: frontier.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Measure tuned models."""


@app.command()
def frontier(
    reference: Annotated[str, typer.Option(help="What the policies were tuned from: folder, run or Hub id.")],
    policy: Annotated[list[str], typer.Option(help="Tuned model, run folder or checkpoint; may be given often.")],
    prompts: Annotated[str, typer.Option(help="Rows with `prompt`, or preference data, whose prompts are taken.")],
    reward: Annotated[str, typer.Option(help="Reward model's folder, vader, length, or file.py:function.")],
    out: Annotated[Path, typer.Option(help="Folder for frontier.json and frontier.html.")] = Path("frontier"),
    temperatures: Annotated[str, typer.Option(help="Sampling temperatures, with commas.")] = "1",
    samples: Annotated[int, typer.Option(help="Responses a prompt of each policy.", min=1)] = 8,
    yardstick: Annotated[int, typer.Option(help="Responses a prompt of the reference.", min=2)] = 128,
    max_new_tokens: Annotated[int, typer.Option(help="Where a response is cut off.", min=1)] = 64,
    max_prompts: Annotated[int | None, typer.Option(help="Take only the first so many prompts.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of all samples.", min=0)] = 0,
    dtype: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    chat_template: Annotated[str | None, typer.Option(help="As data.chat_template.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only errors.")] = False,
) -> None:
    """Reward and sequence KL of policies and temperatures, beside best of n and the optimum: table, plot, JSON."""
    from preftune.errors import ConfigError

    try:
        listed = tuple(float(t) for t in temperatures.split(","))
    except ValueError:
        raise ConfigError(f"not numbers: {temperatures!r}", where="--temperatures", fix="e.g. 0.7,1.0") from None
    from preftune.methods.frontier import Frontier
    from preftune.methods.frontier import run as run_frontier
    from preftune.train.display import Display

    wanted = Frontier(
        reference,
        tuple(policy),
        prompts,
        reward,
        listed,
        samples,
        yardstick,
        max_new_tokens,
        max_prompts,
        seed,
        dtype,
        chat_template,
    )
    run_frontier(wanted, out, Display(quiet))
