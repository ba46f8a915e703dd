"""`preftune init`: list the configs that come with preftune, or write one into a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from preftune.errors import ConfigError, did_you_mean, writing


def init(
    kind: Annotated[
        str | None, typer.Argument(help="Config to write. Leave it out to list the configs.", metavar="KIND")
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folder to write to (default: the current one), and values to set in the file.",
            metavar="FOLDER|SECTION.KEY=VALUE",
        ),
    ] = None,
) -> None:
    """Write a config file to start from, such as dpo.yaml. Without KIND, list the configs."""
    if kind is None:
        width = max(map(len, templates()))
        for name, path in templates().items():
            print(f"{name:<{width}}  {summary_of(path.read_text(encoding='utf-8'))}")
        print("\nWrite one with: preftune init KIND [FOLDER] [SECTION.KEY=VALUE]...")
        return
    from preftune.cli.settings import split_arguments

    folders, settings = split_arguments(arguments or ())
    if len(folders) > 1:
        raise ConfigError(
            f"{len(folders)} folders: {', '.join(folders)}", where="preftune init", fix="pass only one folder"
        )
    path = write(kind, Path(*folders), settings)
    method = command_of(kind)
    required = ["model.path", "data.train", *(["reward"] if method in ("ppo", "iterate") else [])]
    missing = [f"{key}=..." for key in required if not any(setting.startswith(f"{key}=") for setting in settings)]
    print(f"wrote {path}\nnext: edit the file, or set values on the command line, and run it:")
    print("  " + " ".join(["preftune", method, str(path), *missing]))


def templates() -> dict[str, Path]:
    """The configs that come with preftune, by name: dpo, sft, ..., paper/hh-dpo, ..."""
    folder = Path(str(files("preftune") / "configs"))
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    return dict(sorted(names.items(), key=lambda item: ("/" in item[0], item[0])))


def summary_of(text: str) -> str:
    """The first comment line of a config."""
    return text.partition("\n")[0].removeprefix("#").strip()


def command_of(kind: str) -> str:
    """The command that reads a config: `dpo` for dpo-lora and for paper/hh-dpo, `data noise` for noise."""
    from preftune.config.commands import CONFIGS

    method = next(part for part in re.split(r"[-/]", kind) if part in CONFIGS)
    return "data noise" if method == "noise" else method


def write(kind: str, folder: Path, settings: Sequence[str]) -> Path:
    """Write the config `kind` with `settings` to `folder`. Raises ConfigError if it exists or a setting is wrong."""
    configs = templates()
    if kind not in configs:
        what = f"there is no config {kind!r}; {did_you_mean(kind, configs)}"
        raise ConfigError(what, where="preftune init", fix="run preftune init to list the configs")
    if folder.suffix in (".yaml", ".yml") or folder.is_file():
        raise ConfigError("expected a folder, not a file", where=str(folder), fix="pass the folder to write to")
    path = folder / f"{Path(kind).name}.yaml"
    if path.exists():
        what = "the file exists, and preftune init does not overwrite files"
        raise ConfigError(what, where=str(path), fix="choose a different folder, or delete the file")
    text = configs[kind].read_text(encoding="utf-8").replace(f"configs/{kind}.yaml", str(path))
    if settings:
        from preftune.config.commands import CONFIGS
        from preftune.config.edit import with_setting
        from preftune.config.load import load

        load(CONFIGS[command_of(kind).split()[-1]], configs[kind], settings)  # raises for a key or value that is wrong
        for setting in settings:
            text = with_setting(text, setting)
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path
