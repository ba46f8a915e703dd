"""The Python functions preftune.sft, dpo, reward, ppo and iterate."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from preftune.api.inputs import Held, data_name, folder_name, function_name, plain_settings
from preftune.api.models import no_tokenizer
from preftune.api.results import TrainResult
from preftune.api.settings import (
    DPOSettings,
    IterateSettings,
    PPOSettings,
    RewardSettings,
    SFTSettings,
    resolve_config,
)
from preftune.config.commands import CONFIGS
from preftune.errors import ConfigError
from preftune.in_memory import holding

if TYPE_CHECKING:
    from preftune.train.display import Display

Loss = str | Callable[..., Any] | Mapping[str, Any] | Sequence[Mapping[str, Any]]
UNNAMED = "a model in memory"  # its path in the config
CONTROLS = ("config", "overrides", "tokenizer", "dry_run", "quiet", "display")  # arguments that are not config keys


def sft(
    config: Any = None, overrides: Sequence[str] = (), *, model: Any = None, data: Any = None, eval: Any = None,
    format: str | Callable[..., Any] | None = None, out: Any = None, tokenizer: Any = None, dry_run: bool = False,
    quiet: bool = False, display: Display | None = None, **settings: Unpack[SFTSettings],
) -> TrainResult:  # fmt: skip
    """Fine-tune a model on demonstrations or chosen responses. The arguments are those of preftune.dpo."""
    return _run("methods.sft", locals())


def dpo(
    config: Any = None, overrides: Sequence[str] = (), *, model: Any = None, data: Any = None, eval: Any = None,
    loss: Loss | None = None, format: str | Callable[..., Any] | None = None, out: Any = None,
    tokenizer: Any = None, dry_run: bool = False, quiet: bool = False, display: Display | None = None,
    **settings: Unpack[DPOSettings],
) -> TrainResult:  # fmt: skip
    """Train a model on preferences with any loss.

    config     YAML file, dict or DPOConfig; by default, the keywords are the config
    overrides  config keys to override, as on the command line: ["optim.lr=1e-6"]
    model      folder, Hub id, dict of the section `model`, or a model in memory. A model in memory is trained in place;
               with lora it stays unchanged, and the result has the adapter
    data       file, folder, Hub id, list of dicts, datasets.Dataset, DataFrame, or a dict of the section `data`
    eval       held-out data of the same kinds, or a share of the training data between 0 and 1
    loss       name, function, dict of a loss and its parameters, or list of dicts with weights
    format     name of a data format, or a function from a row to a PreferenceGroup, a list of them, or None
    out        run folder; the same call resumes the run in it
    tokenizer  tokenizer of a model in memory
    dry_run    check config, data and model without training
    settings   other sections and keys of the config: optim, train, batch, lora, reference, monitor, track

    Keywords override `config` and `overrides`. Raises ConfigError, DataError, ModelError, RunError, NumericError or
    StorageError. Ctrl-C during training saves a checkpoint and raises Stopped.
    """
    return _run("methods.dpo", locals())


def reward(
    config: Any = None, overrides: Sequence[str] = (), *, model: Any = None, data: Any = None, eval: Any = None,
    format: str | Callable[..., Any] | None = None, out: Any = None, tokenizer: Any = None, dry_run: bool = False,
    quiet: bool = False, display: Display | None = None, **settings: Unpack[RewardSettings],
) -> TrainResult:  # fmt: skip
    """Train a reward model on preferences. The arguments are those of preftune.dpo."""
    return _run("methods.reward", locals())


def ppo(
    config: Any = None, overrides: Sequence[str] = (), *, model: Any = None, data: Any = None, eval: Any = None,
    reward: Any = None, out: Any = None, tokenizer: Any = None, dry_run: bool = False, quiet: bool = False,
    display: Display | None = None, **settings: Unpack[PPOSettings],
) -> TrainResult:  # fmt: skip
    """Train a model with PPO. The arguments are those of preftune.dpo, but `data` are prompts.

    reward   a function (prompts, responses) -> rewards, a reward model's folder or run, or other name of a reward
    """
    return _run("methods.ppo", locals())


def iterate(
    config: Any = None, overrides: Sequence[str] = (), *, model: Any = None, data: Any = None, eval: Any = None,
    reward: Any = None, loss: Loss | None = None, out: Any = None, dry_run: bool = False, quiet: bool = False,
    display: Display | None = None, **settings: Unpack[IterateSettings],
) -> TrainResult:  # fmt: skip
    """Run rounds of sampling, rewarding, pairing and preference training.

    `data` are prompts, `reward` is as in preftune.ppo, and `model` is a folder or Hub id, because each round loads the
    policy of the previous round from its folder.
    """
    return _run("workflows.iterate", locals())


def _run(module: str, arguments: dict[str, Any]) -> TrainResult:
    """Train with the arguments of a public function. The module that trains is imported after the config is checked,
    because the import takes seconds."""
    method = module.partition(".")[2]
    where = f"preftune.{method}()"
    held: Held = {}
    memory: dict[str, Any] = {}
    values = {**arguments, **arguments["settings"]}
    config, overrides, tokenizer, dry_run, quiet, display = (values.get(name) for name in CONTROLS)
    # None means "as in the config" for an argument, and null for a section of the config
    sections = {
        name: value
        for name, value in values.items()
        if name not in (*CONTROLS, "settings") and (value is not None or name in arguments["settings"])
    }
    if "model" in sections:
        _move_model(sections, memory, where)
    if tokenizer is not None:
        memory["tokenizer"] = tokenizer
    _move_data(sections, held, where)
    if "loss" in sections:
        sections["loss"] = loss_section(sections["loss"], held)
    if "reward" in sections:
        if hasattr(sections["reward"], "parameters"):
            folder_name(sections["reward"], f"{where}: reward")
        sections["reward"] = function_name(sections["reward"], held, exact=False)
    for name in ("lora", "monitor"):  # True turns these sections on, False turns them off
        if isinstance(sections.get(name), bool):
            sections[name] = {} if sections[name] else None
    path = (getattr(memory["model"], "name_or_path", "") or UNNAMED) if "model" in memory else None
    resolved = resolve_config(CONFIGS[method], config, overrides or (), plain_settings(sections), where, path)
    if "model" in memory and tokenizer is None and resolved.model.path == UNNAMED:
        raise no_tokenizer(where)
    from preftune.lifecycle.early_checks import check_config
    from preftune.train.display import Display

    with holding(held):
        check_config(resolved, model_in_memory="model" in memory)
        run = importlib.import_module(f"preftune.{module}").run
        run(resolved, display=display or Display(bool(quiet)), dry_run=bool(dry_run), **memory)
    return TrainResult.of(resolved, bool(dry_run))


def _move_model(sections: dict[str, Any], memory: dict[str, Any], where: str) -> None:
    """Make `model` a section of the config, or move a model in memory to `memory`."""
    model = sections["model"]
    if isinstance(model, Mapping) or hasattr(model, "model_dump"):
        return
    if not hasattr(model, "parameters"):
        sections["model"] = {"path": model}
        return
    if where == "preftune.iterate()":  # each round loads its policy from a folder
        folder_name(model, f"{where}: model")
    memory["model"] = sections.pop("model")


def _move_data(sections: dict[str, Any], held: Held, where: str) -> None:
    """Move data, eval and format into the section `data`. Rows and functions are replaced by names."""
    data = sections.pop("data", None)
    if hasattr(data, "model_dump"):
        data = data.model_dump(exclude_unset=True)
    section = dict(data) if _is_section(data) else {} if data is None else {"train": data}
    for name in ("eval", "format"):
        if name in sections:
            if section.get(name) is not None:
                raise ConfigError(f"{name!r} is set twice", where=where, fix=f"remove {name!r} from data={{...}}")
            section[name] = sections.pop(name)
    if section.get("train") is not None:
        section["train"] = data_name(section["train"], "data", held)
    if section.get("eval") is not None and not isinstance(section["eval"], int | float):
        section["eval"] = data_name(section["eval"], "eval", held)
    if "format" in section:
        section["format"] = function_name(section["format"], held)
    if section:
        sections["data"] = section


def _is_section(data: Any) -> bool:
    """Return whether a dict is the section `data` of a config, and not a DatasetDict or the columns of a table."""
    if not isinstance(data, Mapping) or type(data).__module__.partition(".")[0] == "datasets":
        return False
    columns = [isinstance(value, list) and not isinstance((value or [None])[0], Mapping) for value in data.values()]
    return "train" in data or not all(columns) or not data


def loss_section(loss: Any, held: Held) -> Any:
    """Return the section `loss`, with functions replaced by names. preftune's own losses keep their names."""
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
