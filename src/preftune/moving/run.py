"""Convert the config of another program: read it, map its keys, check the result, and write it with an account."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.config.commands import CONFIGS
from preftune.config.load import apply_override, build
from preftune.errors import ConfigError
from preftune.moving import axolotl, llamafactory, openrlhf, swift, trl
from preftune.moving import reasons as r
from preftune.moving.draft import Draft
from preftune.moving.read import TOOLS, Source, read
from preftune.moving.write import config_text, report

CONVERTERS: dict[str, Callable[[Source, int | None], Draft]] = {
    "trl": trl.convert, "llamafactory": llamafactory.convert, "axolotl": axolotl.convert,
    "openrlhf": openrlhf.convert, "swift": swift.convert,
}  # fmt: skip
SAME = {
    "trl": r.TRAINER_SAME | r.TRL_SAME, "llamafactory": r.TRAINER_SAME | r.LF_SAME,
    "axolotl": r.TRAINER_SAME | r.AXOLOTL_SAME, "openrlhf": r.OPENRLHF_SAME, "swift": r.TRAINER_SAME | r.SWIFT_SAME,
}  # fmt: skip
LOST = {
    "trl": r.TRAINER_LOST, "llamafactory": r.TRAINER_LOST | r.LF_LOST, "axolotl": r.TRAINER_LOST | r.AXOLOTL_LOST,
    "openrlhf": r.OPENRLHF_LOST, "swift": r.TRAINER_LOST | r.SWIFT_LOST,
}  # fmt: skip
LOSS_KEYS = (
    *(
        "loss_type",
        "loss_weights",
        "beta",
        "label_smoothing",
        "f_divergence_type",
        "f_alpha_divergence_coef",
        "ld_alpha",
    ),
    *("use_weighting", "discopop_tau", "pref_loss", "pref_beta", "cpo_alpha", "simpo_gamma", "desirable_weight"),
    *("undesirable_weight", "dpo_loss_type", "dpo_loss_weights", "rl_beta", "algo.advantage.estimator", "alpha"),
)
PLACEHOLDERS = {"model": ("path", "MODEL"), "data": ("train", "DATA"), "reward": ("", "REWARD")}


@dataclass(frozen=True, slots=True)
class Imported:
    """A converted config.

    method   the command of preftune that reads it
    text     the YAML, with the account as comments
    report   the lines to print
    missing  keys that the command needs and the other config does not have
    """

    method: str
    text: str
    report: list[str]
    missing: list[str]


def convert(
    file: str,
    *,
    tool: str | None = None,
    method: str | None = None,
    processes: int | None = None,
    settings: Sequence[str] = (),
) -> Imported:
    """Convert the config in `file`.

    tool        the program, a key of `read.TOOLS`; None: recognise it
    method      the method, for files that do not say it
    processes   the number of processes of the run; None: as the file says
    settings    overrides of the result, `section.key=value`

    Raises ConfigError for a file that cannot be read, and for an objective that preftune cannot train unless a setting
    replaces `loss`.
    """
    source = read(file, tool, method)
    draft = CONVERTERS[source.tool](source, processes or source.processes)
    if draft.refused:
        draft.lose(*LOSS_KEYS, note=draft.refused)
    draft.finish(SAME[source.tool], LOST[source.tool])
    keys = {setting.partition("=")[0] for setting in settings}
    if draft.refused and not keys & {"loss", "loss.name"}:
        raise ConfigError(
            f"the objective cannot be carried over: {draft.refused}",
            where=file,
            why=f"{draft.tool} trains another loss than any of preftune's",
            fix="choose a loss of docs/lookup/losses.md: add loss.name=NAME to this command, or write your own loss",
        )
    draft.config.setdefault("loss", {"name": "sigmoid"}) if keys & {"loss", "loss.name"} else None
    places: dict[Any, str] = {}
    for setting in settings:
        apply_override(draft.config, places, setting)
    config = _ordered(draft.config, draft.method)
    missing = _check(config, draft.method, file)
    command = f"preftune {draft.method} FILE"
    text = config_text(draft, config, Path(file).name, command, settings)
    return Imported(draft.method, text, report(draft, config, f"{TOOLS[source.tool]} ({file})", settings), missing)


def _ordered(config: dict[str, Any], method: str) -> dict[str, Any]:
    """Return the sections and keys in the order of the documentation."""
    fields = list(CONFIGS[method].model_fields)
    first = [
        "model",
        "reference",
        "data",
        "reward",
        "value",
        "loss",
        "rollout",
        "ppo",
        "optim",
        "batch",
        "train",
        "lora",
    ]
    order = {name: number for number, name in enumerate([*first, *(f for f in fields if f not in first)])}
    return dict(sorted(config.items(), key=lambda item: order.get(item[0], 99)))


def _check(config: dict[str, Any], method: str, file: str) -> list[str]:
    """Raise ConfigError if preftune does not accept the config. Return the required keys that are missing."""
    filled = {name: dict(section) if isinstance(section, dict) else section for name, section in config.items()}
    missing = []
    for section, (key, value) in PLACEHOLDERS.items():
        if section not in CONFIGS[method].model_fields:
            continue
        if not key and section not in filled:
            filled[section] = value
            missing.append(section)
        elif key and key not in filled.setdefault(section, {}):
            filled[section][key] = value
            missing.append(f"{section}.{key}")
    build(CONFIGS[method], filled, {}, file)
    return missing
