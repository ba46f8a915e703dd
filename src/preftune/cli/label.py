"""The command `preftune label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from preftune.cli import options as opt


def label(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="Samples, two files of samples to compare, or preference data; then settings.",
            metavar="FILE [FILE] [data.KEY=VALUE]",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Preference data to write. The verdicts are saved beside them.")] = Path(
        "prefs.jsonl"
    ),
    annotator: Annotated[
        str | None, typer.Option(help="Name of the only annotator. By default, the page asks for a name.")
    ] = None,
    pairs: Annotated[str, typer.Option(help="Pairs per prompt, chosen at random: a number, or all.")] = "1",
    votes: Annotated[
        int | None,
        typer.Option(help="Annotators who judge each pair. By default, every annotator judges every pair.", min=1),
    ] = None,
    soft: Annotated[
        bool, typer.Option("--soft", help="Label each pair with the mean of its verdicts, and keep ties as 0.5.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the page (0 = a free one).", min=0, max=65535)] = 0,
    seed: Annotated[int, typer.Option(help="Random seed of the pairs and of their order on the page.", min=0)] = 0,
    no_page: Annotated[
        bool, typer.Option("--no-page", help="Only write the preference data of the saved verdicts.")
    ] = False,
    data_format: opt.DataFormat = None,
) -> dict[str, Any]:
    """Let people compare responses on a page in the browser. Rerun the same command to resume."""
    from preftune.cli.settings import data_section, split_arguments
    from preftune.config.schema import UNUSED_BY_SCORE

    sources, settings = split_arguments(arguments)
    per_row, name = number_of_pairs(pairs), annotator and annotator_option(annotator)
    if not sources:
        from preftune.errors import ConfigError

        raise ConfigError("the file to label is missing", where="preftune label", fix="preftune label samples.jsonl")
    section = data_section(
        sources[0], settings, {"--format": data_format}, command="preftune label", unused=UNUSED_BY_SCORE
    )
    section = section.model_copy(update={"train": sources if len(sources) > 1 else sources[0]})
    from preftune.cli.torch_import import import_torch

    display = import_torch()
    from preftune.workflows.label import LabelOptions, run

    complete = run(LabelOptions(section, name, per_row, votes, soft, seed, port), out, display, page=not no_page)
    if not complete:
        display.say("next: some pairs need more verdicts; rerun the same command to judge them")
    elif name is None:
        display.say("every pair has its verdicts; to add those of one more annotator, pass --annotator NAME")
    return {"out": out, "complete": complete}


def number_of_pairs(text: str) -> int | None:
    """Return the number in --pairs, or None for all."""
    from preftune.errors import ConfigError

    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ConfigError(f"{text!r} is not a number of pairs", where="--pairs", fix="write a number, or all")
    return int(text)


def annotator_option(text: str) -> str:
    """Return a valid name of an annotator."""
    from preftune.errors import ConfigError
    from preftune.people.server import BadRequest, annotator_name

    try:
        return annotator_name(text)
    except BadRequest as error:
        raise ConfigError(str(error), where="--annotator", fix="choose a shorter name") from None
