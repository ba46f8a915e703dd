"""`preftune config`: the JSON Schema of configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from preftune.errors import ConfigError, did_you_mean, writing

app = typer.Typer(help="Describe configs for editors and other programs.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Describe configs for editors and other programs."""


@app.command()
def schema(
    method: Annotated[str, typer.Argument(help="dpo, sft, reward, ppo, iterate or noise.", metavar="METHOD")],
    out: Annotated[Path | None, typer.Option(help="File to write. By default: stdout.")] = None,
) -> dict[str, Any]:
    """Print the JSON Schema of the config of a method. With it, editors complete and check YAML files."""
    from preftune.config.commands import CONFIGS
    from preftune.config.json_schema import json_schema

    if method not in CONFIGS:
        what = f"unknown method {method!r}; {did_you_mean(method, CONFIGS)}"
        raise ConfigError(what, where="preftune config schema", fix=f"use one of {', '.join(CONFIGS)}")
    text = json.dumps(json_schema(method), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
        return {"schema": json.loads(text)}
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    print(f"wrote {out}\nnext: begin a config beside it with the line:\n  # yaml-language-server: $schema={out.name}")
    return {"out": out}
