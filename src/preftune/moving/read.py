"""Read the config of another program from YAML, JSON or a shell script, and recognise the program."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from preftune.config.load import read_file
from preftune.errors import ConfigError, did_you_mean, one_of
from preftune.moving.draft import as_number
from preftune.moving.shell import Command, commands_of

TOOLS = {
    "trl": "TRL",
    "llamafactory": "LLaMA-Factory",
    "axolotl": "axolotl",
    "openrlhf": "OpenRLHF",
    "swift": "ms-swift",
}
#: Keys that only one of the programs has. The program with most of them in a file wrote it.
MARKS = {
    "trl": "loss_type beta dataset_name dataset_mixture dataset_mixer use_peft lora_target_modules max_prompt_length "
    "per_device_train_batch_size model_name_or_path model_revision dataset_train_split attn_implementation "
    "precompute_ref_log_probs truncation_mode",
    "llamafactory": "stage finetuning_type template cutoff_len dataset_dir lora_target pref_beta pref_loss do_train "
    "plot_loss pref_ftx simpo_gamma per_device_train_batch_size model_name_or_path dataset",
    "axolotl": "base_model sequence_len micro_batch_size num_epochs rl adapter lora_target_linear "
    "dataset_prepared_path val_set_size rl_beta lora_model_dir wandb_entity special_tokens output_dir sample_packing",
    "openrlhf": "pretrain micro_train_batch_size train_batch_size zero_stage chosen_key max_len",
    "swift": "rlhf_type tuner_type train_type split_dataset_ratio attn_impl lora_rank model dataset torch_dtype",
}
NEEDED = {"trl": 2, "llamafactory": 3, "axolotl": 2, "openrlhf": 3, "swift": 2}
FILES = {".yaml", ".yml", ".json"}
PROGRAMS: list[tuple[str, str]] = [  # pattern of one word of a command, or of two, and the program
    (r"openrlhf[./]cli[./](?:train_)?(?P<method>\w+?)(?:\.py)?", "openrlhf"),
    (r"(?:\S*/)?train_(?P<method>dpo|rm|sft|ppo|kto|ppo_ray)\.py", "openrlhf"),
    (r"(?:\S*/)?swift (?P<method>rlhf|sft|pt)", "swift"),
    (r"(?:\S*/)?swift/cli/(?P<method>rlhf|sft|pt)\.py", "swift"),
    (r"(?:\S*/)?(?:llamafactory-cli|lmf) train", "llamafactory"),
    (r"(?:\S*/)?src/train(?:_bash)?\.py", "llamafactory"),
    (r"(?:\S*/)?axolotl train|axolotl\.cli\.train|scripts/finetune\.py", "axolotl"),
    (r"(?:\S*/)?trl (?P<method>dpo|sft|kto|reward|orpo|cpo|grpo|rloo|gkd|ppo|online_dpo)", "trl"),
    (r"(?:\S*/)?(?:run_)?(?P<method>dpo|sft|kto|reward|reward_modeling|orpo|cpo|simpo|grpo|ppo|online_dpo)\.py", "trl"),
]
OTHER_PROGRAMS = r"(?:\S*/)?megatron (?:rlhf|sft|pt)|(?:\S*/)?examples/run_dpo\.py|tune run"


@dataclass(frozen=True, slots=True)
class Source:
    """A config as it was read.

    file        the file
    tool        a key of TOOLS
    method      the method that the command names, or ""
    values      the keys
    processes   the number of processes that the command starts, if it is certain
    """

    file: str
    tool: str
    method: str
    values: Mapping[str, Any]
    processes: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def read(file: str, tool: str | None, method: str | None) -> Source:
    """Read `file`. Raises ConfigError if the program is not recognised, or if the file has several commands."""
    if tool is not None and tool not in TOOLS:
        what = f"there is no program {tool!r}; {did_you_mean(tool, TOOLS)}"
        raise ConfigError(what, where="--from", fix=f"write one of {', '.join(TOOLS)}")
    path = Path(file)
    if path.suffix == ".py":
        what = "a Python script is not read, because its values may be computed"
        raise ConfigError(what, where=file, fix="pass the YAML file or the shell command that you run it with")
    if path.suffix.lower() in FILES or path.is_dir() or not path.is_file():
        values, _ = read_file(file)
        tool = tool or recognise(values, file)
        return Source(file, tool, method or "", values, _processes_in(values))
    return _from_script(file, tool, method)


def recognise(values: Mapping[str, Any], file: str) -> str:
    """Return the program whose keys `values` has. Raises ConfigError if that is not clear."""
    keys = {key.partition(".")[0] for key in values}
    if {"model", "data"} <= keys and isinstance(values.get("model"), dict) and "path" in values["model"]:
        raise ConfigError("this is a config of preftune already", where=file, fix="run it with preftune dpo")
    if {"model", "train_dataset"} <= keys and {"model_class", "peft_config", "dist_config", "sample_backend"} & keys:
        return "llamafactory"  # its trainer v1
    scores = {tool: len(keys & set(marks.split())) for tool, marks in MARKS.items()}
    best = max(scores.values())
    winners = [tool for tool, score in scores.items() if score == best and score >= NEEDED[tool]]
    if len(winners) != 1:
        seen = ", ".join(sorted(keys)[:6]) or "none"
        what = f"cannot tell which program this config is for; its first keys: {seen}"
        raise ConfigError(what, where=file, fix=f"add --from {one_of(list(TOOLS))}")
    return winners[0]


def _from_script(file: str, tool: str | None, method: str | None) -> Source:
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read as text: {error}", where=file, fix="pass a YAML file or a script") from None
    commands = [match for command in commands_of(text) if (match := _training(command, file))]
    wanted = [c for c in commands if tool in (None, c[0]) and (not method or method in (c[1], ""))] or commands
    if not wanted:
        names = ", ".join(TOOLS.values())
        what = f"there is no training command of {names} in this script"
        raise ConfigError(what, where=file, fix="pass the script or the YAML file that starts the training")
    if len({(name, words) for name, _, words, _ in wanted}) > 1:
        lines = ", ".join(f"line {command.line} ({TOOLS[name]} {kind})" for name, kind, _, command in wanted)
        raise ConfigError(f"several training commands: {lines}", where=file, fix="pass --method to choose one of them")
    name, kind, words, command = wanted[0]
    values: dict[str, Any] = {}
    for config in _config_files(name, words, file):
        values |= read_file(config)[0]
    values |= flags_of(words, dotted=name == "openrlhf")
    for key in ("config", "config_file") if name == "trl" else ():
        if str(values.get(key, "")).endswith((".yaml", ".yml")):
            values.pop(key)
    return Source(file, name, method or kind, values, _processes_of(command, name), command.environment)


def _training(command: Command, file: str) -> tuple[str, str, tuple[str, ...], Command] | None:
    """Return (program, method, its arguments, the command) of a training command."""
    words = command.words
    for index, word in enumerate(words):
        if " " in word and "--" in word:  # bash -c "..."
            inner = next((m for c in commands_of(word) if (m := _training(c, file))), None)
            if inner:
                return inner
        two = f"{word} {words[index + 1]}" if index + 1 < len(words) else word
        if re.fullmatch(OTHER_PROGRAMS, two) or re.fullmatch(OTHER_PROGRAMS, word):
            raise ConfigError(
                f"{two!r} is not supported", where=f"{file}:{command.line}",
                fix="start from preftune init dpo, and set the keys by hand",
            )  # fmt: skip
        for pattern, tool in PROGRAMS:
            match = re.fullmatch(pattern, word) or re.fullmatch(pattern, two)
            if match:
                rest = words[index + (1 if re.fullmatch(pattern, word) else 2) :]
                return tool, match.groupdict().get("method") or "", rest, command
    return None


def _config_files(tool: str, words: Sequence[str], file: str) -> list[str]:
    """Return the config files in the arguments of a command, next to the script or in the current folder."""
    names = []
    for before, word in zip(["", *words], words, strict=False):
        if not word.endswith((".yaml", ".yml")):
            continue
        if (before in ("--config", "--config_file") and tool == "trl") or (
            tool in ("axolotl", "llamafactory", "swift") and not before.startswith("--")
        ):
            names.append(word)
    paths = []
    for name in names:
        candidates = [Path(name), Path(file).parent / name, Path(file).parent / Path(name).name]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            what = f"the command reads {name}, which is not here"
            raise ConfigError(what, where=file, fix="run this in the folder where the command runs, or pass that file")
        paths.append(str(path))
    return paths


def flags_of(words: Sequence[str], *, dotted: bool = False) -> dict[str, Any]:
    """Return the options of a command: `--key value`, `--key=value`, `--key a b`, `--flag`, and `key=value`.

    `dotted`: `--a.b` keeps its name. A hyphen in a name is read as an underscore.
    """
    values: dict[str, Any] = {}
    key = ""
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            key = name if dotted else name.replace("-", "_")
            values[key] = _typed(value) if equals else True
            key = "" if equals else key
        elif key:
            old = values[key]
            value = _typed(word)
            values[key] = value if old is True else [*(old if isinstance(old, list) else [old]), value]
        elif re.fullmatch(r"[A-Za-z_][\w.]*=.*", word, re.DOTALL):
            name, _, value = word.partition("=")
            values[name] = _typed(value)
    for name in [name for name, value in values.items() if name.startswith("no_") and value is True]:
        values.setdefault(name[3:], False)  # HfArgumentParser: --no_x for a switch that is on by default
        del values[name]
    return values


def _typed(text: str) -> Any:
    """Return the text of an option as YAML reads it, with 1e-6 as a number. Text that YAML cannot read stays text."""
    number = as_number(text)
    if number is not None:
        return number
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, bool | list | dict) or value is None else text


def _processes_in(values: Mapping[str, Any]) -> int | None:
    number = as_number(values.get("num_processes"))
    return int(number) if number else None


def _processes_of(command: Command, tool: str) -> int | None:
    """Return the number of processes that a command starts, if that is certain."""
    flags = flags_of([word for word in command.words if "nproc" in word or "num" in word or "nnodes" in word])
    options = dict(zip(command.words, [*command.words[1:], ""], strict=True)) | {
        f"--{key}": str(value) for key, value in flags.items() if value is not True
    }
    each = ("--nproc_per_node", "--nproc-per-node", "--num_gpus", "--gpus_per_node")
    per_node = next((options[name] for name in each if name in options), command.environment.get("NPROC_PER_NODE"))
    nodes = options.get("--nnodes", options.get("--num_nodes", command.environment.get("NNODES", "1")))
    total = options.get("--num_processes")
    devices = command.environment.get("CUDA_VISIBLE_DEVICES", "")
    launcher = any(word.rpartition("/")[2] in ("deepspeed", "llamafactory-cli", "lmf") for word in command.words)
    if total is None and per_node is None and launcher and re.fullmatch(r"\d+(,\d+)*", devices):
        per_node = str(len(devices.split(",")))
    if total is not None:
        number = as_number(total)
        return int(number) if number else None
    if per_node is None:
        return 1 if tool == "swift" else None
    count, several = as_number(per_node), as_number(nodes)
    return int(count * several) if count and several else None
