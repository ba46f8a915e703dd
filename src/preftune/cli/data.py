"""The commands `preftune data check`, `show`, `convert` and `noise`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from preftune.cli.options import ChatTemplate, Config, Data, DataFormat, DryRun, Lora, Model, Out, Quiet

if TYPE_CHECKING:
    from preftune.chat.render import Renderer
    from preftune.cli.settings import CheckSettings
    from preftune.config.schema import DataConfig
    from preftune.data.audit import Lengths
    from preftune.model.load import Source
    from preftune.workflows.check_data import Checked

app = typer.Typer(help="Inspect and convert preference data.", no_args_is_help=True, rich_markup_mode=None)

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        help="Files, folders, patterns, URLs or Hub ids of any formats, and keys of the config section `data`.",
        metavar="FILE|data.KEY=VALUE",
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Config of a run, whose data, model and loss are used.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Model whose tokenizer is used: folder or Hub id (model.path).")
]
LengthOption = Annotated[
    int | None, typer.Option("--max-length", help="Maximum number of tokens (data.max_length).", min=2)
]
ReportOption = Annotated[
    Path | None, typer.Option("--out", help="Write the report: a .json file with all line numbers, or a .html page.")
]
WriteOption = Annotated[
    Path | None, typer.Option("--write", help="Write the rows without findings to this JSONL file.")
]
DropOption = Annotated[
    str | None,
    typer.Option("--drop", help="Kinds of findings whose rows --write leaves out, separated by commas."),
]


@app.command()
def check(
    arguments: Arguments = None,
    config: ConfigOption = None,
    eval: Annotated[
        str | None, typer.Option("--eval", help="Held-out data: a file, or a share of the data (data.eval).")
    ] = None,
    model: ModelOption = None,
    data_format: DataFormat = None,
    max_length: LengthOption = None,
    chat_template: ChatTemplate = None,
    out: ReportOption = None,
    write: WriteOption = None,
    drop: DropOption = None,
) -> dict[str, Any]:
    """Report dropped rows, lengths, duplicates, leaks and defects. Fails if training on the data would fail."""
    from preftune.cli.findings import drop_kinds, require_report_name
    from preftune.cli.settings import check_settings

    kinds = drop_kinds(drop, write)
    require_report_name(out)

    options: dict[str, Any] = {"--eval": _share(eval), "--model": model, "--format": data_format}
    options |= {"--max-length": max_length, "--chat-template": chat_template}
    settings = check_settings(arguments or (), config, options, "preftune data check")
    from preftune.cli.torch_import import import_torch
    from preftune.config.schema import terms_of

    import_torch()
    from preftune.lifecycle.sources import training_sources
    from preftune.model.load import load_config, max_positions
    from preftune.workflows.check_data import check as check_data
    from preftune.workflows.clean_data import require_other_file, write_clean
    from preftune.workflows.data_report import as_json as report_json
    from preftune.workflows.data_report import write_report

    paths = [one.path for one in training_sources(settings.data)]
    if write:
        require_other_file(write, paths)

    terms = terms_of(settings.loss or {"name": "sigmoid"})
    source, renderer = _model_of(settings)
    model_config = load_config(source) if source else None
    limit = max_positions(model_config) if source else None
    rows = model_config.get_text_config().vocab_size if model_config and source and not source.adapter else None
    checked = check_data(settings.data, settings.method, terms, renderer, limit, rows, source.base if source else "")
    lines = _lines(checked, settings, limit)
    written = write_clean(write, paths, checked, kinds).lines() if write else []
    if out:
        write_report(out, checked, [*lines, *written])
        written.append(f"{out}: report written")
    print("\n".join([*lines, *written]))
    print()
    _show(checked.groups, 3, renderer, settings.data)
    result: dict[str, Any] = report_json(checked)
    if checked.refusal:
        checked.refusal.result = result
        raise checked.refusal
    return result


@app.command()
def show(
    arguments: Arguments = None,
    n: Annotated[int, typer.Option("--n", help="Number of groups to show.", min=1)] = 3,
    line: Annotated[int | None, typer.Option("--line", help="Show only the group of this line.", min=1)] = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    data_format: DataFormat = None,
    max_length: LengthOption = None,
    chat_template: ChatTemplate = None,
) -> dict[str, Any]:
    """Show groups as the model sees them. With --model, each scored token is in brackets."""
    from preftune.cli.settings import check_settings

    options: dict[str, Any] = {"--model": model, "--format": data_format}
    options |= {"--max-length": max_length, "--chat-template": chat_template}
    settings = check_settings(arguments or (), config, options, "preftune data show")
    from preftune.data.convert import group_rows
    from preftune.errors import DataError
    from preftune.lifecycle.data import read_sources
    from preftune.lifecycle.sources import training_sources

    data, renderer = settings.data, _model_of(settings)[1]
    has_template = bool(renderer and renderer.template.source)
    groups, accounts = read_sources(training_sources(data.model_copy(update={"bad_rows": "drop"}), has_template))
    if line is not None:
        groups = [g for g in groups if g.origin.endswith(f":{line}")]
        if not groups:
            places = [f"{account.source}:{line}" for account in accounts]
            dropped = [(reason, o) for account in accounts for reason, o in account.dropped.items()]
            reasons = [reason for reason, origins in dropped if any(place in origins for place in places)]
            fix = "repair the row" if reasons else "pass --line with the line number of a row of FILE"
            what = reasons[0] if reasons else "the data have no row at this line"
            raise DataError(what, where=", ".join(places), fix=fix)
    for account in accounts:
        account.check(1.0)
    _show(groups, n, renderer, data)
    return {"groups": list(group_rows(groups[:n]))}


@app.command()
def convert(
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write.")],
    arguments: Arguments = None,
    to: Annotated[
        str, typer.Option("--to", help="Target format: pairs (one line per pair) or groups (one line per prompt).")
    ] = "pairs",
    config: ConfigOption = None,
    data_format: DataFormat = None,
) -> dict[str, Any]:
    """Convert data of any supported format to JSONL. The rows are prompt/chosen/rejected pairs, or groups."""
    from preftune.cli.settings import check_settings
    from preftune.data.convert import group_rows, pair_rows
    from preftune.errors import ConfigError
    from preftune.files import write_rows

    writers = {"pairs": pair_rows, "groups": group_rows}
    if to not in writers:
        raise ConfigError(f"unknown target format {to!r}", where="--to", fix=f"use one of {', '.join(writers)}")
    settings = check_settings(arguments or (), config, {"--format": data_format}, "preftune data convert")
    from preftune.formats.account import together
    from preftune.lifecycle.data import read_sources
    from preftune.lifecycle.sources import training_sources

    groups, accounts = read_sources(training_sources(settings.data))
    for account in accounts:
        account.check(1.0)
    rows = list(writers[to](groups))
    write_rows(out, rows)
    account = together(accounts)
    print("\n".join([*(line for one in accounts for line in one.lines()), f"{out}: {len(rows)} lines"]))
    return {"out": out, "lines": len(rows), "account": account.record()}


@app.command()
def noise(
    arguments: Config = None,
    model: Model = None,
    data: Data = None,
    lora: Lora = False,
    out: Out = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> dict[str, Any]:
    """List pairs whose label is probably wrong. Each pair is ranked by a model trained on other parts of the data."""
    from preftune.cli.training import config_from

    resolved = config_from("noise", arguments or (), model, data or (), lora, out)
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    from preftune.workflows.label_noise import run

    written = run(resolved, display=display, dry_run=dry_run)
    if dry_run:
        return {"dry_run": True, "out": resolved.out}
    from preftune.train.run import Run

    summary = Run.manifest(Path(resolved.out))
    return {"out": written, **{key: summary[key] for key in summary if key not in ("identity", "versions", "machine")}}


def _model_of(settings: CheckSettings) -> tuple[Source | None, Renderer | None]:
    """Return the files of the model and its tokenizer, or None without a model."""
    from preftune.chat.open import load_renderer
    from preftune.model.load import locate

    if settings.model is None:
        return None, None
    source = locate(settings.model.path)
    return source, load_renderer(settings.data, source)


def _share(text: str | None) -> str | float | None:
    """Read the value of --eval: a share of the rows if it is a number and not a file, otherwise a file."""
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


def _lines(checked: Checked, settings: CheckSettings, limit: int | None) -> list[str]:
    """Return the lines of the report."""
    from preftune.cli.findings import finding_lines
    from preftune.formats.account import format_origins

    def row(name: str, lengths: Lengths | None) -> list[str]:
        if lengths is None:
            return []
        cells = (lengths.mean, lengths.p10, lengths.p50, lengths.p90, lengths.p99, lengths.longest)
        return [f"  {name:<10}" + "".join(f"{cell:>9.0f}" for cell in cells)]

    audit, train = checked.audit, checked.source
    lines = [line for account in checked.accounts for line in account.lines()]
    lines += ["data.stream: only the first rows were checked"] if settings.data.stream else []
    lines += [f"an epoch has {sum(use.per_epoch for use in checked.uses):,} groups:"] if checked.uses else []
    lines += [f"  {use.name}: {use.per_epoch:,} of {use.groups:,} groups ({use.share:.1%})" for use in checked.uses]
    lines += [
        f"{audit.groups} groups, {audit.responses} responses ({audit.labelled} labelled), "
        f"{audit.judgements} judgements",
        f"lengths in {audit.unit}" + " " * 3 + "".join(f"{h:>9}" for h in ("mean", "p10", "p50", "p90", "p99", "max")),
        *row("prompt", audit.prompt),
        *(row("chosen", audit.chosen) + row("rejected", audit.rejected) or row("response", audit.response)),
    ]
    if audit.chosen_longer is not None:
        share = f"{audit.chosen_longer:.1%} of the pairs"
        lines.append(f"the chosen response is the longer one in {share} (in {audit.unit}; a tie counts as half)")
    for name, words in COUNTS.items():
        number, origins = getattr(audit, name), audit.origins[name]
        if number is not None:
            source = checked.evaluation if name == "leaks" else train
            lines.append(f"{words}: {number}" + (f" ({format_origins(origins, source)})" if origins else ""))
    lines += finding_lines(checked.findings, train, checked.evaluation)
    if checked.too_long:
        what = f"groups longer than the model's context of {limit} tokens: {len(checked.too_long)}"
        lines.append(f"{what} ({format_origins(checked.too_long, train)}); set data.max_length={limit}")
    if audit.groups and not audit.judgements and settings.method is None:
        use = "loss.name=kto or bco" if audit.labelled else "preftune sft"
        lines.append(f"the data contain no preference pairs; train with {use}")
    if audit.uninformative:
        lines.append(f"warning: {audit.uninformative}")
    return lines


def _show(groups: Sequence[Any], n: int, renderer: Renderer | None, data: DataConfig) -> None:
    from rich.console import Console

    from preftune.cli.show import render_group
    from preftune.data.tokenize_groups import Limits

    limits = Limits(data.max_length, data.max_prompt_length, bad_rows="drop")
    console = Console(highlight=False, emoji=False)
    for group in groups[:n]:
        console.print(render_group(group, renderer, limits, brackets=not console.is_terminal), soft_wrap=True)
