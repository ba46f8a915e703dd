"""preftune data check | show | convert | noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from preftune.chat.render import Renderer
    from preftune.cli.settings import Checking
    from preftune.config.schema import DataConfig
    from preftune.data.audit import Lengths
    from preftune.model.load import Source
    from preftune.workflows.check_data import Checked

app = typer.Typer(help="Look at preference data before training on them.", no_args_is_help=True, rich_markup_mode=None)

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        help="File, folder or Hub id (several are read as one), and settings of a run's data section.",
        metavar="[FILE]... [data.KEY=VALUE]...",
    ),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="Config of a run: its data, model and loss.")]
FormatOption = Annotated[str | None, typer.Option("--format", help="Short for data.format.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Short for model.path: count in its tokens.")]
LengthOption = Annotated[int | None, typer.Option("--max-length", help="Short for data.max_length.", min=2)]
TemplateOption = Annotated[str | None, typer.Option("--chat-template", help="Short for data.chat_template.")]


@app.command()
def check(
    arguments: Arguments = None,
    config: ConfigOption = None,
    eval: Annotated[str | None, typer.Option("--eval", help="Short for data.eval: a file, or a share.")] = None,
    model: ModelOption = None,
    data_format: FormatOption = None,
    max_length: LengthOption = None,
    chat_template: TemplateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every line number.")] = False,
) -> None:
    """What a run reads from a file, what it drops and why, lengths, repeats, leaks. Fails where the run would."""
    from preftune.cli.settings import checking

    short = {
        "--eval": _share(eval),
        "--model": model,
        "--format": data_format,
        "--max-length": max_length,
        "--chat-template": chat_template,
    }
    wanted = checking(arguments or (), config, short, "preftune data check")
    from preftune.config.schema import terms_of
    from preftune.model.load import load_config, max_positions
    from preftune.workflows.check_data import check as check_data

    terms = terms_of(wanted.loss or {"name": "sigmoid"})
    source, renderer = _model_of(wanted)
    model_config = load_config(source) if source else None
    limit = max_positions(model_config) if source else None
    rows = model_config.get_text_config().vocab_size if model_config and source and not source.adapter else None
    checked = check_data(wanted.data, wanted.method, terms, renderer, limit, rows, source.base if source else "")
    if as_json:
        print(json.dumps(_as_json(checked), indent=1))
    else:
        print("\n".join(_lines(checked, wanted, limit)))
        print()
        _show(checked.groups, 3, renderer, wanted.data)
    if checked.refusal:
        raise checked.refusal


@app.command()
def show(
    arguments: Arguments = None,
    n: Annotated[int, typer.Option("--n", help="How many groups.", min=1)] = 3,
    line: Annotated[int | None, typer.Option("--line", help="The group of this line only.", min=1)] = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    data_format: FormatOption = None,
    max_length: LengthOption = None,
    chat_template: TemplateOption = None,
) -> None:
    """Groups as the model will see them; with a model, every scored token in brackets."""
    from preftune.cli.settings import checking

    short = {
        "--model": model,
        "--format": data_format,
        "--max-length": max_length,
        "--chat-template": chat_template,
    }
    wanted = checking(arguments or (), config, short, "preftune data show")
    from preftune.data.groups import read_groups
    from preftune.errors import DataError
    from preftune.lifecycle.prepare import reading_of

    data = wanted.data
    groups, account = read_groups(data.train, reading_of(data.model_copy(update={"bad_rows": "drop"})))
    if line is not None:
        groups = [g for g in groups if g.origin.endswith(f":{line}")]
        if not groups:
            where = f"{account.source}:{line}"
            reasons = [reason for reason, origins in account.dropped.items() if where in origins]
            raise DataError(reasons[0] if reasons else "no such row", where=where)
    account.check(1.0)
    _show(groups, n, _model_of(wanted)[1], data)


@app.command()
def convert(
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write.")],
    arguments: Arguments = None,
    to: Annotated[str, typer.Option("--to", help="pairs: one line a judgement; groups: one line a prompt.")] = "pairs",
    config: ConfigOption = None,
    data_format: FormatOption = None,
) -> None:
    """Write any known format as preftune's own: prompt/chosen/rejected pairs, or groups."""
    from preftune.cli.settings import checking
    from preftune.data.convert import as_groups, as_pairs
    from preftune.errors import ConfigError
    from preftune.files import write_rows

    writers = {"pairs": as_pairs, "groups": as_groups}
    if to not in writers:
        raise ConfigError(f"unknown target {to!r}", where="--to", fix=f"use one of {', '.join(writers)}")
    wanted = checking(arguments or (), config, {"--format": data_format}, "preftune data convert")
    from preftune.data.groups import read_groups
    from preftune.lifecycle.prepare import reading_of

    groups, account = read_groups(wanted.data.train, reading_of(wanted.data))
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
    from preftune.train.display import Display
    from preftune.workflows.label_noise import run

    run(resolved, display=Display(quiet), dry_run=dry_run)


def _model_of(wanted: Checking) -> tuple[Source | None, Renderer | None]:
    """Where the model lies that counts the tokens, and its tokenizer; None without one."""
    from preftune.chat.open import load_renderer
    from preftune.model.load import locate

    if wanted.model is None:
        return None, None
    source = locate(wanted.model.path)
    return source, load_renderer(wanted.data, source)


def _share(text: str | None) -> str | float | None:
    """`--eval` is a share of the rows if it is a number."""
    try:
        return float(text) if text is not None and not Path(text).exists() else text
    except ValueError:
        return text


COUNTS = {
    "repeated_prompts": "repeated prompts",
    "repeated_judgements": "repeated judgements",
    "contradictions": "contradictions",
    "leaks": "evaluation groups whose prompt is in the training data",
}


def _as_json(checked: Checked) -> dict[str, Any]:
    """Everything that is counted, with every origin."""
    from dataclasses import asdict

    train, *others = checked.accounts
    rows = {"format": train.format, "read": train.read, "kept": train.kept}
    refusal = checked.refusal
    more = {
        "evaluation": {a.source: {"read": a.read, "dropped": a.dropped, "noted": a.noted} for a in others},
        "too_long_for_the_model": list(checked.too_long),
        "refused": {"exit_code": refusal.exit_code, "message": str(refusal)} if refusal else None,
    }
    return {**rows, "dropped": train.dropped, "noted": train.noted, **asdict(checked.audit), **more}


def _lines(checked: Checked, wanted: Checking, limit: int | None) -> list[str]:
    """The report in words."""
    from preftune.formats.account import places

    def row(name: str, lengths: Lengths | None) -> list[str]:
        if lengths is None:
            return []
        cells = (lengths.mean, lengths.p10, lengths.p50, lengths.p90, lengths.p99, lengths.longest)
        return [f"  {name:<10}" + "".join(f"{cell:>9.0f}" for cell in cells)]

    found, train = checked.audit, checked.accounts[0].source
    lines = [line for account in checked.accounts for line in account.lines()]
    lines += [
        f"{found.groups} groups, {found.responses} responses, {found.judgements} judgements, {found.labelled} labelled",
        f"lengths in {found.unit}" + " " * 3 + "".join(f"{h:>9}" for h in ("mean", "p10", "p50", "p90", "p99", "max")),
        *row("prompt", found.prompt),
        *(row("chosen", found.chosen) + row("rejected", found.rejected) or row("response", found.response)),
    ]
    if found.chosen_longer is not None:
        lines.append(f"the better response is the longer one in {found.chosen_longer:.1%} of the judgements")
    for name, words in COUNTS.items():
        number, origins = getattr(found, name), found.origins[name]
        if number is not None:
            source = checked.accounts[-1].source if name == "leaks" else train
            lines.append(f"{words} {number}" + (f" ({places(origins, source)})" if origins else ""))
    if checked.too_long:
        rows = places(checked.too_long, train)
        what = f"groups longer than the {limit} positions of the model {len(checked.too_long)} ({rows})"
        lines.append(f"{what}: set data.max_length={limit}")
    if found.groups and not found.judgements and wanted.method is None:
        use = "loss.name=kto or bco" if found.labelled else "preftune sft"
        lines.append(f"no response is compared with another: train with {use}")
    if found.uninformative:
        lines.append(f"warning: {found.uninformative}")
    return lines


def _show(groups: Sequence[Any], n: int, renderer: Renderer | None, data: DataConfig) -> None:
    from rich.console import Console

    from preftune.cli.show import render_group
    from preftune.data.groups import Limits

    limits = Limits(data.max_length, data.max_prompt_length, bad_rows="drop")
    console = Console(highlight=False)
    for group in groups[:n]:
        console.print(render_group(group, renderer, limits, brackets=not console.is_terminal), soft_wrap=True)
