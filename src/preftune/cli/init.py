"""`preftune init`: list the configs that come with preftune, or write one for a model, data and this machine."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from preftune.errors import ConfigError, did_you_mean, writing

GOALS = ("sft", "dpo", "kto", "simpo", "reward", "ppo", "iterate")
LOSS_GOALS = {"kto": "dpo", "simpo": "dpo"}  # goals that are losses of the command dpo
FITTED = (*GOALS, "dpo-lora", "noise")  # the others are records of experiments, which must not change
YAML = (".yaml", ".yml")


def init(
    goal: Annotated[
        str | None, typer.Argument(help="What to train. Leave it out to list the goals.", metavar="GOAL")
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folder to write to (default: the current one), and values to set in the file.",
            metavar="FOLDER|SECTION.KEY=VALUE",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write, instead of FOLDER/GOAL.yaml.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to train (model.path). Lengths and memory fit to it.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data to train on (data.train). They decide between text and chat.")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--text", help="Train on chat messages or on text. By default: as model and data are."),
    ] = None,
) -> dict[str, Any]:
    """Write a config for a goal and for this machine.

    The config has comments. Without GOAL, list the goals.

    With --model and --data, the config fits to them, and the command that is printed runs as it is.
    """
    if goal is None:
        print(_listing())
        return {"configs": {name: summary_of(path.read_text(encoding="utf-8")) for name, path in templates().items()}}
    from preftune.cli.settings import split_arguments

    folders, settings = split_arguments(arguments or ())
    if len(folders) > 1:
        raise ConfigError(
            f"{len(folders)} folders: {', '.join(folders)}", where="preftune init", fix="pass only one folder"
        )
    if out and folders:
        raise ConfigError(f"there is a folder, {folders[0]}, and --out {out}", where="preftune init", fix="remove one")
    settings += [f"{key}={value}" for key, value in (("model.path", model), ("data.train", data)) if value]
    path = write(goal, out or Path(*folders, f"{Path(goal).name}.yaml"), settings, chat)
    command, missing = command_of(goal), missing_keys(goal, settings)
    print(
        f"wrote {path}\nnext: {'edit the file, or set values on the command line, and run it' if missing else 'run'}:"
    )
    print("  " + " ".join(["preftune", command, shlex.quote(str(path)), *(f"{key}=..." for key in missing)]))
    return {"out": path, "run": f"preftune {command} {shlex.quote(str(path))}", "missing": missing}


def _listing() -> str:
    """Return the goals and the other configs, with what they are for."""
    configs = templates()
    width = max(map(len, configs))
    rows = [f"{name:<{width}}  {summary_of(path.read_text(encoding='utf-8'))}" for name, path in configs.items()]
    usage = "preftune init GOAL --model MODEL --data FILE [--out FILE] [SECTION.KEY=VALUE]..."
    return "\n".join([*rows, "", f"Write one with: {usage}"])


def templates() -> dict[str, Path]:
    """The configs that come with preftune, by name: sft, dpo, ..., paper/hh-dpo, ... The goals come first."""
    folder = Path(str(files("preftune") / "configs"))
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}

    def rank(name: str) -> tuple[bool, int, str]:
        return "/" in name, GOALS.index(name) if name in GOALS else len(GOALS), name

    return {name: names[name] for name in sorted(names, key=rank)}


def summary_of(text: str) -> str:
    """The first comment line of a config."""
    return text.partition("\n")[0].removeprefix("#").strip()


def command_of(kind: str) -> str:
    """The command that reads a config: `dpo` for kto, dpo-lora and paper/hh-dpo, `data noise` for noise."""
    from preftune.config.commands import CONFIGS

    method = next(LOSS_GOALS.get(part, part) for part in re.split(r"[-/]", kind) if part in (*CONFIGS, *LOSS_GOALS))
    return "data noise" if method == "noise" else method


def missing_keys(goal: str, settings: Sequence[str]) -> list[str]:
    """Return the keys that the user has to set before the config runs."""
    required = ["model.path", "data.train", *(["reward"] if command_of(goal) in ("ppo", "iterate") else [])]
    return [key for key in required if not any(setting.startswith(f"{key}=") for setting in settings)]


def write(goal: str, path: Path, settings: Sequence[str], chat: bool | None = None) -> Path:
    """Write the config for `goal` with `settings` to `path`. `chat` as in `fit_config.reasons`.

    Raises ConfigError if the file exists or a setting is wrong.
    """
    configs = templates()
    if goal not in configs:
        what = f"unknown goal {goal!r}; {did_you_mean(goal, configs)}"
        raise ConfigError(what, where="preftune init", fix="run preftune init to list the goals")
    if path.parent.suffix in YAML or path.parent.is_file():
        fix = f"pass the file as --out {shlex.quote(str(path.parent))}, or a folder to write to"
        raise ConfigError("expected a folder, not a file", where=str(path.parent), fix=fix)
    if path.suffix not in YAML:
        raise ConfigError("a config is a YAML file", where=f"--out {path}", fix="name a file that ends in .yaml")
    if path.exists():
        what = "the file exists, and preftune init does not overwrite files"
        raise ConfigError(what, where=str(path), fix="choose a different name or folder, or delete the file")
    template = configs[goal].read_text(encoding="utf-8")
    text = _fitted(goal, template, configs[goal], settings, chat).replace(
        f"configs/{goal}.yaml", shlex.quote(str(path))
    )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def _fitted(goal: str, text: str, template: Path, settings: Sequence[str], chat: bool | None) -> str:
    """Return the text of a template with `settings`, and with what fits to model, data and machine."""
    from preftune.cli.fit_config import reasons
    from preftune.cli.machine import this_machine
    from preftune.config.commands import CONFIGS
    from preftune.config.edit import with_setting
    from preftune.config.load import load, read_file

    method = command_of(goal).split()[-1]
    load(CONFIGS[method], template, settings)  # raises for a key or value that is wrong
    for setting in settings:
        text = with_setting(text, setting)
    chosen = dict(setting.split("=", 1) for setting in settings)
    header: list[str] = []
    if goal in FITTED:
        machine = this_machine()
        header = [f"For this machine: {machine.describe()}."]
        for reason in reasons(method, read_file(template)[0], chosen, machine, chat):
            for setting in reason.settings:
                text = with_setting(text, setting)
            header.append(f"{reason.about}: {reason.why}.")
        header.append(
            "--dry-run checks config, data and model, and prints the plan. docs/lookup/configuration.md lists all keys."
        )
    return _with_header(text, header, chosen)


def _with_header(text: str, header: Sequence[str], chosen: Mapping[str, str]) -> str:
    """Insert comment lines after those at the top of the file, and remove from these the keys that are set."""
    lines = text.splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    top = lines[:end]
    for key in chosen:
        top = [re.sub(rf" {re.escape(key)}=\S+", "", line) for line in top]
    if "data.train" in chosen:
        source = shlex.quote(chosen["data.train"])
        top = [re.sub(r"(preftune data check )\S+", lambda match: match[1] + source, line) for line in top]
    body = [re.sub(r" +# ", "  # ", line) for line in lines[end:]] if chosen else lines[end:]
    comments = [part for line in header for part in textwrap.wrap(line, 115, subsequent_indent="  ")]
    return "\n".join([*top, *(["#", *(f"# {line}" for line in comments)] if comments else []), *body]) + "\n"
