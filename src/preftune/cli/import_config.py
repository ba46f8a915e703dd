"""`preftune import-config`: convert the config of another program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from preftune.errors import ConfigError, writing


def import_config(
    file: Annotated[
        str, typer.Argument(help="YAML or JSON config, or the shell script that starts the training.", metavar="FILE")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Values to set in the result.", metavar="[SECTION.KEY=VALUE]..."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write. By default, the config goes to stdout and the report to stderr.")
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option(
            "--from", help="trl, llamafactory, axolotl, openrlhf or swift. By default: recognised by its keys."
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="The method, if the file does not say it: dpo, sft, reward, kto, orpo, ...")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Number of processes (GPUs) of the other run, for the batch size.", min=1)
    ] = None,
) -> dict[str, Any]:
    """Convert a config of TRL or a similar program.

    Reads TRL, LLaMA-Factory, axolotl, OpenRLHF and ms-swift. Every key is mapped or listed.
    """
    from preftune.cli.settings import split_arguments
    from preftune.moving.run import convert

    files, values = split_arguments(settings or ())
    if files:
        raise ConfigError(
            f"{files[0]!r} is not a setting", where="preftune import-config", fix="write section.key=value"
        )
    if out is not None and out.exists():
        what = "the file exists, and preftune import-config does not overwrite files"
        raise ConfigError(what, where=str(out), fix="choose a different name, or delete the file")
    result = convert(file, tool=tool, method=method, processes=processes, settings=values)
    missing = " ".join(f"{key}=..." for key in result.missing)
    summary = {"method": result.method, "missing": list(result.missing), "report": list(result.report)}
    if out is None:
        sys.stdout.write(result.text)
        print("\n".join(result.report), file=sys.stderr)
        return {**summary, "config": result.text}
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(
            result.text.replace(f"preftune {result.method} FILE", f"preftune {result.method} {out}"), "utf-8"
        )
    print("\n".join(result.report))
    print(
        f"\nwrote {out}\nnext: " + " ".join(filter(None, ["preftune", result.method, str(out), "--dry-run", missing]))
    )
    return {**summary, "out": out}
