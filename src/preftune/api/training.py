"""preftune.sft, dpo, reward, ppo and iterate as Python functions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from preftune.api.inputs import Held, data_name, folder_name, function_name, plain_settings
from preftune.api.models import no_tokenizer
from preftune.api.results import TrainResult
from preftune.api.settings import DPOSettings, IterateSettings, PPOSettings, RewardSettings, Tuning, resolved
from preftune.errors import ConfigError
from preftune.objects import holding

if TYPE_CHECKING:
    from preftune.train.display import Display

Loss = str | Callable[..., Any] | Mapping[str, Any] | Sequence[Mapping[str, Any]]
UNNAMED = "a model in memory"  # the name of one in a config
OPTIONAL = ("lora", "monitor")  # sections that True turns on and False turns off


@dataclass(frozen=True, slots=True)
class Call:
    """How a run is done, besides its config."""

    overrides: Sequence[str] = ()
    tokenizer: Any = None
    dry_run: bool = False
    quiet: bool = False
    display: Display | None = None


def sft(
    config: Any = None,
    overrides: Sequence[str] = (),
    *,
    model: Any = None,
    data: Any = None,
    eval: Any = None,
    format: str | Callable[..., Any] | None = None,
    out: Any = None,
    tokenizer: Any = None,
    dry_run: bool = False,
    quiet: bool = False,
    display: Display | None = None,
    **settings: Unpack[Tuning],
) -> TrainResult:
    """Tune a model on demonstrations, or on the chosen responses of preference data. Arguments as in preftune.dpo."""
    sections = {"model": model, "data": data, "eval": eval, "format": format, "out": out, **settings}
    return _run("sft", "SFTConfig", config, sections, Call(overrides, tokenizer, dry_run, quiet, display))


def dpo(
    config: Any = None,
    overrides: Sequence[str] = (),
    *,
    model: Any = None,
    data: Any = None,
    eval: Any = None,
    loss: Loss | None = None,
    format: str | Callable[..., Any] | None = None,
    out: Any = None,
    tokenizer: Any = None,
    dry_run: bool = False,
    quiet: bool = False,
    display: Display | None = None,
    **settings: Unpack[DPOSettings],
) -> TrainResult:
    """Tune a model on preferences, with any loss.

    config     a YAML file, a dict or a DPOConfig; left out, the keywords are the config
    overrides  changes to it as on the command line, e.g. ["optim.lr=1e-6"]
    model      folder, Hub id, dict of the section `model`, or a model in memory, which is trained in place;
               with lora it is left as it was, and the result has the adapter
    data       file, folder, Hub id, list of dicts, datasets.Dataset, DataFrame, or a dict of the section `data`
    eval       held-out data of the same kinds, or a share of the training data below 1
    loss       a name, a function, a dict of a loss and its parameters, or a list of dicts with weights
    format     a data format's name, or a function from a row to a PreferenceGroup, a list of them, or None
    out        the run folder; the same call resumes the run in it
    tokenizer  for a model in memory
    settings   other sections and keys: optim, train, batch, lora, reference, monitor, track

    Keywords win over `config` and `overrides`. Raises ConfigError, DataError, ModelError, RunError, NumericError,
    StorageError; Ctrl-C during training saves a checkpoint and raises Stopped.
    """
    sections = {"model": model, "data": data, "eval": eval, "loss": loss, "format": format, "out": out, **settings}
    return _run("dpo", "DPOConfig", config, sections, Call(overrides, tokenizer, dry_run, quiet, display))


def reward(
    config: Any = None,
    overrides: Sequence[str] = (),
    *,
    model: Any = None,
    data: Any = None,
    eval: Any = None,
    format: str | Callable[..., Any] | None = None,
    out: Any = None,
    tokenizer: Any = None,
    dry_run: bool = False,
    quiet: bool = False,
    display: Display | None = None,
    **settings: Unpack[RewardSettings],
) -> TrainResult:
    """Train a reward model on preferences. Arguments as in preftune.dpo."""
    sections = {"model": model, "data": data, "eval": eval, "format": format, "out": out, **settings}
    return _run("reward", "RewardConfig", config, sections, Call(overrides, tokenizer, dry_run, quiet, display))


def ppo(
    config: Any = None,
    overrides: Sequence[str] = (),
    *,
    model: Any = None,
    data: Any = None,
    eval: Any = None,
    reward: Any = None,
    out: Any = None,
    tokenizer: Any = None,
    dry_run: bool = False,
    quiet: bool = False,
    display: Display | None = None,
    **settings: Unpack[PPOSettings],
) -> TrainResult:
    """Tune a model with PPO. `data` are prompts; other arguments as in preftune.dpo.

    reward   a function (prompts, responses) -> rewards, a reward model's folder or run, or another name of a reward
    """
    sections = {"model": model, "data": data, "eval": eval, "reward": reward, "out": out, **settings}
    return _run("ppo", "PPOConfig", config, sections, Call(overrides, tokenizer, dry_run, quiet, display))


def iterate(
    config: Any = None,
    overrides: Sequence[str] = (),
    *,
    model: Any = None,
    data: Any = None,
    eval: Any = None,
    reward: Any = None,
    loss: Loss | None = None,
    out: Any = None,
    dry_run: bool = False,
    quiet: bool = False,
    display: Display | None = None,
    **settings: Unpack[IterateSettings],
) -> TrainResult:
    """Do rounds of sampling, rewarding, pairing and preference training. `data` are prompts; `reward` as in ppo.

    `model` is a folder or a Hub id: every round loads the policy of the round before from its folder.
    """
    sections = {"model": model, "data": data, "eval": eval, "reward": reward, "loss": loss, "out": out, **settings}
    return _run("iterate", "IterateConfig", config, sections, Call(overrides, None, dry_run, quiet, display))


def _run(method: str, kind: str, config: Any, sections: dict[str, Any], call: Call) -> TrainResult:
    """Resolve the config, which takes no time; then import what trains, which takes seconds."""
    where = f"preftune.{method}()"
    held: Held = {}
    memory: dict[str, Any] = {}
    # None means "as in the config" for arguments, and null for sections of the config
    named = ("model", "data", "eval", "format", "loss", "reward", "out")
    wanted = {name: value for name, value in sections.items() if value is not None or name not in named}
    if "model" in wanted:
        _model(wanted, memory, where)
    if call.tokenizer is not None:
        memory["tokenizer"] = call.tokenizer
    _data(wanted, held, where)
    if "loss" in wanted:
        wanted["loss"] = loss_section(wanted["loss"], held)
    if "reward" in wanted:
        if hasattr(wanted["reward"], "parameters"):
            folder_name(wanted["reward"], f"{where}: reward")
        wanted["reward"] = function_name(wanted["reward"], held, exact=False)
    for name in OPTIONAL:
        if isinstance(wanted.get(name), bool):
            wanted[name] = {} if wanted[name] else None
    path = (getattr(memory["model"], "name_or_path", "") or UNNAMED) if "model" in memory else None
    found = resolved(_schema(kind), config, call.overrides, plain_settings(wanted), where, path)
    if "model" in memory and call.tokenizer is None and found.model.path == UNNAMED:
        raise no_tokenizer(where)
    from preftune.train.display import Display

    room = "workflows" if method == "iterate" else "methods"
    run = importlib.import_module(f"preftune.{room}.{method}").run
    with holding(held):
        run(found, display=call.display or Display(call.quiet), dry_run=call.dry_run, **memory)
    return TrainResult.of(found, call.dry_run)


def _schema(kind: str) -> Any:
    for module in ("schema", "sampling"):
        found = getattr(importlib.import_module(f"preftune.config.{module}"), kind, None)
        if found:
            return found
    raise LookupError(kind)


def _model(wanted: dict[str, Any], memory: dict[str, Any], where: str) -> None:
    """Make `model` the section of the config; a model in memory is handed on beside it."""
    model = wanted["model"]
    if isinstance(model, Mapping) or hasattr(model, "model_dump"):
        return
    if not hasattr(model, "parameters"):
        wanted["model"] = {"path": model}
        return
    if where == "preftune.iterate()":  # every round loads its policy from a folder
        folder_name(model, f"{where}: model")
    memory["model"] = wanted.pop("model")


def _data(wanted: dict[str, Any], held: Held, where: str) -> None:
    """Move data, eval and format into the section `data`, with rows and functions by their names."""
    data = wanted.pop("data", None)
    if hasattr(data, "model_dump"):
        data = data.model_dump(exclude_unset=True)
    section = dict(data) if _is_section(data) else {} if data is None else {"train": data}
    for name in ("eval", "format"):
        if name in wanted:
            if section.get(name) is not None:
                raise ConfigError(f"{name!r} is set twice", where=where, fix=f"leave {name!r} out of data={{...}}")
            section[name] = wanted.pop(name)
    if section.get("train") is not None:
        section["train"] = data_name(section["train"], "data", held)
    if section.get("eval") is not None and not isinstance(section["eval"], int | float):
        section["eval"] = data_name(section["eval"], "eval", held)
    if "format" in section:
        section["format"] = function_name(section["format"], held)
    if section:
        wanted["data"] = section


def _is_section(data: Any) -> bool:
    """Whether a dict is a config's section, and not a DatasetDict or the columns of a table."""
    if not isinstance(data, Mapping) or type(data).__module__.partition(".")[0] == "datasets":
        return False
    columns = [isinstance(value, list) and not isinstance((value or [None])[0], Mapping) for value in data.values()]
    return "train" in data or not all(columns) or not data


def loss_section(loss: Any, held: Held) -> Any:
    """The section `loss`: functions by their names; preftune's own losses by those that they have."""
    if isinstance(loss, list | tuple):
        return [loss_section(term, held) for term in loss]
    if not isinstance(loss, Mapping):
        loss = {"name": loss}
    name = loss.get("name", "sigmoid")
    if not callable(name):
        return dict(loss)
    from preftune.losses import PREFERENCE_LOSSES

    own = next((key for key, function in PREFERENCE_LOSSES.items() if function is name), None)
    return {**loss, "name": own or function_name(name, held)}
