"""preftune data check | show | convert | noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preftune.data.audit import Audit, Lengths
    from preftune.data.render import Renderer
    from preftune.types import TokenGroup

app = typer.Typer(help="Look at preference data before training on them.", no_args_is_help=True, rich_markup_mode=None)

File = Annotated[str, typer.Argument(help="File, folder or Hub id.", metavar="FILE")]
FormatOption = Annotated[str, typer.Option("--format", help="Data format; auto finds it.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Count in the tokens of this model.")]
LengthOption = Annotated[int, typer.Option("--max-length", help="As data.max_length.", min=2)]
TemplateOption = Annotated[str | None, typer.Option("--chat-template", help="As data.chat_template.")]


@app.command()
def check(
    file: File,
    eval: Annotated[str | None, typer.Option("--eval", help="Evaluation data, to look for leaks.")] = None,
    model: ModelOption = None,
    data_format: FormatOption = "auto",
    max_length: LengthOption = 1024,
    chat_template: TemplateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Format found, rows kept and dropped by reason, lengths, duplicates, leaks, three rendered pairs."""
    from dataclasses import asdict

    from preftune.data.audit import audit
    from preftune.data.groups import Limits, read_groups, tokenize
    from preftune.data.parsers import Reading

    groups, account = read_groups(file, Reading(data_format, bad_rows="drop"))
    held_out = read_groups(eval, Reading(data_format, bad_rows="drop"))[0] if eval else None
    renderer = _renderer(model, chat_template) if model else None
    tokens = tokenize(groups, renderer, Limits(max_length, bad_rows="drop"), account) if renderer else None
    found = audit(groups, tokens, held_out)
    if as_json:
        rows = {"format": account.format, "read": account.read, "kept": account.kept}
        print(json.dumps({**rows, "dropped": account.dropped, "noted": account.noted, **asdict(found)}, indent=1))
    else:
        print("\n".join([*account.lines(), *_lines(found), *(_beyond(model, tokens) if model and tokens else ())]))
        print()
        _show(groups, 3, renderer, max_length)
    account.check(1.0)


@app.command()
def show(
    file: File,
    n: Annotated[int, typer.Option("--n", help="How many groups.", min=1)] = 3,
    line: Annotated[int | None, typer.Option("--line", help="The group of this line only.", min=1)] = None,
    model: ModelOption = None,
    data_format: FormatOption = "auto",
    max_length: LengthOption = 1024,
    chat_template: TemplateOption = None,
) -> None:
    """Groups as the model will see them; with --model, every scored token in brackets."""
    from preftune.data.groups import read_groups
    from preftune.data.parsers import Reading
    from preftune.errors import DataError

    groups, account = read_groups(file, Reading(data_format, bad_rows="drop"))
    if line is not None:
        groups = [g for g in groups if g.origin.endswith(f":{line}")]
        if not groups:
            reasons = [reason for reason, origins in account.dropped.items() if f"{file}:{line}" in origins]
            raise DataError(reasons[0] if reasons else "no such row", where=f"{file}:{line}")
    account.check(1.0)
    _show(groups, n, _renderer(model, chat_template) if model else None, max_length)


@app.command()
def convert(
    file: File,
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write.")],
    to: Annotated[str, typer.Option("--to", help="pairs: one line a judgement; groups: one line a prompt.")] = "pairs",
    data_format: FormatOption = "auto",
) -> None:
    """Write any known format as preftune's own: prompt/chosen/rejected pairs, or groups."""
    from preftune.data.convert import as_groups, as_pairs
    from preftune.data.groups import read_groups
    from preftune.data.parsers import Reading
    from preftune.errors import ConfigError
    from preftune.files import write_rows

    writers = {"pairs": as_pairs, "groups": as_groups}
    if to not in writers:
        raise ConfigError(f"unknown target {to!r}", where="--to", fix=f"use one of {', '.join(writers)}")
    groups, account = read_groups(file, Reading(data_format))
    account.check(1.0)
    rows = list(writers[to](groups))
    write_rows(out, rows)
    print("\n".join([*account.lines(), f"{out}: {len(rows)} lines"]))


@app.command()
def noise(
    config: Annotated[Path, typer.Argument(help="YAML file.", metavar="CONFIG.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the file.", metavar="[SECTION.KEY=VALUE]...")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, train nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only errors.")] = False,
) -> None:
    """Judgements that models trained on the other folds rank backwards, the surest first: labels to look at again."""
    from preftune.config.load import load
    from preftune.config.schema import NoiseConfig

    resolved = load(NoiseConfig, config, overrides or ())
    from preftune.methods.noise import run
    from preftune.train.display import Display

    run(resolved, display=Display(quiet), dry_run=dry_run)


def _renderer(model: str, chat_template: str | None) -> Renderer:
    from preftune.evaluate.renderers import renderer_of
    from preftune.model.load import locate

    return renderer_of(locate(model, "--model"), chat_template)


def _beyond(model: str, tokens: Sequence[TokenGroup]) -> list[str]:
    """A line if sequences are longer than the model was built for: training refuses them."""
    from preftune.model.load import load_config, locate, positions

    limit = positions(load_config(locate(model, "--model")))
    if not limit or all(group.longest <= limit for group in tokens):
        return []
    over = sum(group.longest > limit for group in tokens)
    return [f"{over} groups are longer than the {limit} positions of the model: set --max-length {limit}"]


def _lines(found: Audit) -> list[str]:
    def row(name: str, lengths: Lengths | None) -> list[str]:
        if lengths is None:
            return []
        cells = (lengths.mean, lengths.p10, lengths.p50, lengths.p90, lengths.p99, lengths.longest)
        return [f"  {name:<10}" + "".join(f"{cell:>9.0f}" for cell in cells)]

    lines = [
        f"{found.groups} groups, {found.responses} responses, {found.judgements} judgements, {found.labelled} labelled",
        f"lengths in {found.unit}" + " " * 3 + "".join(f"{h:>9}" for h in ("mean", "p10", "p50", "p90", "p99", "max")),
        *row("prompt", found.prompt),
        *(row("chosen", found.chosen) + row("rejected", found.rejected) or row("response", found.response)),
    ]
    if found.chosen_longer is not None:
        lines.append(f"the better response is the longer one in {found.chosen_longer:.1%} of the judgements")
    lines.append(
        f"repeated prompts {found.repeated_prompts}, repeated judgements {found.repeated_judgements}, "
        f"contradictions {found.contradictions}"
    )
    if found.leaks is not None:
        lines.append(f"evaluation groups whose prompt is in the training data: {found.leaks}")
    if found.uninformative:
        lines.append(f"warning: {found.uninformative}")
    return lines


def _show(groups: list[Any], n: int, renderer: Renderer | None, max_length: int) -> None:
    from rich.console import Console

    from preftune.cli.show import render_group

    console = Console(highlight=False)
    for group in groups[:n]:
        console.print(render_group(group, renderer, max_length, brackets=not console.is_terminal), soft_wrap=True)
