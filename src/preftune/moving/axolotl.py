"""axolotl: `axolotl train FILE`.

Facts are from axolotl 0.19 (core/builders/rl.py, utils/config), which runs on TRL 1.8 and later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preftune.errors import ConfigError
from preftune.moving import common, ours, preference
from preftune.moving.draft import Draft, as_list, as_number, truth
from preftune.moving.read import Source

DEFAULTS = common.DEFAULTS | {
    "lr_scheduler": "cosine", "optimizer": "adamw_torch_fused", "num_epochs": 1, "sequence_len": 512,
    "micro_batch_size": 1, "logging_steps": None, "output_dir": "./model-out", "f_alpha_divergence_coef": 0.5,
    "discopop_tau": 0.05, "save_strategy": None, "save_steps": None, "eval_strategy": "no", "warmup_steps": None,
}  # fmt: skip
METHODS = {"dpo": "dpo", "ipo": "dpo", "kto": "dpo", "orpo": "dpo", "simpo": "dpo"}
#: Data formats of axolotl whose columns preftune recognises as they are.
RENDERED = "preftune renders the rows with the chat template; compare the result with preftune data show"


def convert(source: Source, processes: int | None) -> Draft:
    """Return the draft of preftune's config."""
    values, rl = source.values, str(source.values.get("rl") or "")
    if rl and rl not in METHODS:
        fix = "preftune has ppo and iterate: see preftune init ppo"
        raise ConfigError(f"rl: {rl} is not converted", where=source.file, fix=fix)
    for key in ("process_reward_model", "pretraining_dataset"):
        if truth(values.get(key)):
            raise ConfigError(f"{key} is not converted", where=source.file, fix="preftune does not have it")
    method = METHODS.get(rl) or ("reward" if truth(values.get("reward_model")) else "sft")
    draft = Draft("axolotl", values, DEFAULTS, method, processes)
    draft.keep("rl", "reward_model", note=f"the command preftune {method}")
    _model(draft)
    _data(draft)
    if method == "dpo":
        _loss(draft, rl)
    centre = draft.number("center_rewards_coefficient") if method == "reward" else None
    if centre is not None:
        draft.put("centre", float(centre), "center_rewards_coefficient")
    _warmup_default(draft)
    common.optimizer(draft, schedule="lr_scheduler", name="optimizer")
    _batch(draft, processes)
    common.length(draft, "num_epochs")
    _saving(draft)
    common.memory(draft)
    _trackers(draft)
    common.output(draft)
    ours.best(draft, "early_stopping_patience")
    return draft


def _model(draft: Draft) -> None:
    if draft.has("base_model"):
        revision = draft.values.get("revision_of_model")
        path = str(draft.values["base_model"]) + (f"@{revision}" if revision else "")
        draft.put("model.path", path, "base_model", "revision_of_model")
    common.precision(draft)
    kind = str(draft.get("adapter") or "")
    if kind in ("lora", "qlora"):
        modules = [str(name) for name in as_list(draft.values.get("lora_target_modules"))]
        linear = draft.on("lora_target_linear") or modules in (["all-linear"], ["all_linear"])
        targets: Any = "all-linear" if linear or not modules else modules
        keys = [key for key in ("lora_target_linear", "lora_target_modules") if draft.has(key)]
        common.adapter(
            draft, "lora_r", "lora_alpha", targets, *(keys or ["lora_target_linear"]), rslora="peft_use_rslora"
        )
        ours.variants(draft, "peft_use_dora", "lora_modules_to_save")
        bits = 4 if kind == "qlora" or draft.on("load_in_4bit") else 8 if draft.on("load_in_8bit") else None
        keys = [key for key in ("load_in_4bit", "load_in_8bit") if draft.on(key)]
        ours.quantised(draft, bits, *(keys or ["adapter"]))
        draft.keep("adapter", note="the section lora")
        if draft.method == "dpo":
            draft.keep("lora_dropout", note="TRL turns dropout off (disable_dropout), in the adapter as well")
        if draft.has("lora_model_dir"):
            draft.lose("lora_model_dir", note="set model.path to this adapter folder")
    elif kind:
        draft.lose("adapter", note=f"preftune has no {kind}; this config trains all weights. Add lora={{}}")
    lora = [key for key in draft.values if key.startswith("lora_")]
    if not kind:
        draft.keep(*lora, note="no effect without adapter")
    if draft.on("precompute_ref_log_probs"):
        draft.put("reference.kind", "cached", "precompute_ref_log_probs")


def _loss(draft: Draft, rl: str) -> None:
    """Set `loss` to what TRL trains with the settings that axolotl passes to it."""
    nested = common.mapping(draft, "trl").get("beta")
    keys = ["rl_beta", "dpo_beta", "orpo_alpha", "trl"]
    values = [nested, draft.values.get("rl_beta"), draft.values.get("dpo_beta"), draft.values.get("orpo_alpha")]
    beta = next((float(number) for value in values if (number := as_number(value)) is not None), 0.1)
    present = [key for key in keys if draft.has(key)] or ["rl_beta"]
    if rl == "kto":
        good, bad = draft.number("kto_desirable_weight"), draft.number("kto_undesirable_weight")
        term = {"name": "kto", "beta": beta, "desirable": float(good or 1), "undesirable": float(bad or 1)}
        draft.objective.append("kto: TRL estimates the KL on each micro-batch, preftune on the whole step")
        preference.put_loss(draft, [term], *present, "kto_desirable_weight", "kto_undesirable_weight")
    elif rl == "orpo":
        draft.objective.append(preference.ORPO_NOTE)
        preference.put_loss(draft, [{"name": "orpo", "beta": beta}], *present)
    elif rl == "simpo":
        _simpo(draft, beta, present)
    else:
        kinds, weights = ["ipo"], [1.0]
        if rl == "dpo":
            kinds, weights = preference.types_and_weights(draft, "dpo_loss_type", "dpo_loss_weights")
        renamed = {"label_smoothing": "dpo_label_smoothing", "use_weighting": "dpo_use_weighting"}
        values_of_trl = {new: draft.values.get(old) for new, old in renamed.items()}
        inner = Draft("axolotl", values_of_trl, DEFAULTS)
        result = preference.terms(inner, beta, preference.Version(), kinds, weights)
        draft.objective += inner.objective
        draft.refused = inner.refused
        keys = ["dpo_loss_type", "dpo_loss_weights", "dpo_label_smoothing", "dpo_use_weighting"]
        preference.put_loss(draft, result, *present, *(key for key in keys if draft.has(key)))
        _old_keys(draft, result)
    draft.keep("trl", note="see loss")


def _simpo(draft: Draft, beta: float, present: list[str]) -> None:
    alpha, gamma = draft.number("cpo_alpha"), draft.number("simpo_gamma")
    if gamma is None:
        draft.objective.append("simpo_gamma is not set: axolotl stops with an error then; 0.5 is TRL's default")
    if alpha is None:
        draft.objective.append("cpo_alpha is not set: TRL's default is 1, not 0")
    result = preference.cpo(draft, "simpo", beta, 1.0 if alpha is None else float(alpha), float(gamma or 0.5))
    if present == ["rl_beta"] and not draft.has("rl_beta"):
        draft.objective.append("rl_beta is not set: TRL's default is 0.1; the SimPO paper uses 2 and more")
    preference.put_loss(draft, result, *present, "cpo_alpha", "simpo_gamma")


def _old_keys(draft: Draft, result: list[preference.Term]) -> None:
    """Account for loss settings that axolotl no longer has."""
    if draft.has("rpo_alpha") and result:
        note = "axolotl no longer has it; loss=[{...}, {name: nll, weight: ALPHA}] adds this term"
        draft.lose("rpo_alpha", note=note)
    draft.lose("dpo_norm_loss", note="axolotl no longer has it; loss.name=sigmoid_norm is length-normalised DPO")


def _warmup_default(draft: Draft) -> None:
    """Write axolotl's default warm-up: 3 % of the steps, at most 100."""
    if not draft.has("warmup_steps") and not draft.has("warmup_ratio"):
        draft.defaults = {**draft.defaults, "warmup_ratio": 0.03}
        draft.objective.append("note: axolotl's default warm-up is 3 % of the steps, at most 100 steps")


def _batch(draft: Draft, processes: int | None) -> None:
    total = draft.number("batch_size") if not draft.has("gradient_accumulation_steps") else None
    if total:
        note = "per process; with N processes, pass --processes N" if processes is None else ""
        draft.put("batch.pairs", int(total * (processes or 1)), "batch_size", note=note)
        draft.keep("micro_batch_size", note="the size of micro-batches does not affect the gradient")
    else:
        common.batch(draft, "micro_batch_size", "gradient_accumulation_steps", processes)
        draft.keep("batch_size", note="follows from micro_batch_size and gradient_accumulation_steps")


def _saving(draft: Draft) -> None:
    steps, strategy = draft.number("save_steps"), str(draft.get("save_strategy") or "").lower()
    if steps and steps >= 1 and strategy in ("", "steps"):
        draft.put("train.save_every", int(steps), "save_steps", "save_strategy")
    note = "preftune chooses when to save; or set train.save_every to a number of steps"
    draft.lose("saves_per_epoch", "save_steps", "save_strategy", note=note)
    every = draft.number("logging_steps")
    if every and every >= 1:
        draft.put("train.log_every", int(every), "logging_steps")
    draft.put("train.seed", int(draft.number("seed") or 0), "seed", note="another order of the data than there")


def _trackers(draft: Draft) -> None:
    switches = {
        "use_wandb": "wandb",
        "use_mlflow": "mlflow",
        "use_tensorboard": "tensorboard",
        "use_trackio": "trackio",
    }
    projects = {"wandb_project": "wandb", "mlflow_tracking_uri": "mlflow", "trackio_project_name": "trackio"}
    names = [name for key, name in (switches | projects).items() if draft.on(key)]
    keys = [key for key in (*switches, *projects) if draft.has(key)]
    variables = {
        "wandb_project": "WANDB_PROJECT", "wandb_entity": "WANDB_ENTITY", "wandb_name": "WANDB_NAME",
        "wandb_mode": "WANDB_MODE", "wandb_run_id": "WANDB_RUN_ID", "mlflow_tracking_uri": "MLFLOW_TRACKING_URI",
        "mlflow_experiment_name": "MLFLOW_EXPERIMENT_NAME", "trackio_project_name": "TRACKIO_PROJECT",
    }  # fmt: skip
    wanted = [f"{new}={draft.values[old]}" for old, new in variables.items() if draft.on(old)]
    if names:
        note = f"set {' '.join(wanted)} in the environment" if wanted else ""
        draft.put("track", list(dict.fromkeys(names)), *keys, note=note)
    for old, new in variables.items():
        draft.keep(old, note=f"preftune reads {new} from the environment")
    draft.keep("mlflow_run_name", "trackio_run_name", note="preftune names a run after its folder")


def _data(draft: Draft) -> None:
    sets = [item for item in as_list(draft.values.get("datasets")) if isinstance(item, dict)]
    train = [_source(draft, item) for item in sets]
    if train:
        unique = list(dict.fromkeys(train))
        if len(unique) < len(train):
            draft.objective.append("note: a data set is listed twice; preftune reads it once")
        draft.put("data.train", unique[0] if len(unique) == 1 else unique, "datasets")
    _fields(draft, sets)
    _held_out(draft)
    length = draft.number("sequence_len")
    strategy = draft.values.get("excess_length_strategy")
    if length:
        draft.put("data.max_length", int(length), "sequence_len")
    overlong = {"drop": "drop", "truncate": "truncate", "raise": "error"}.get(str(strategy or "drop"), "drop")
    draft.put("data.overlong", overlong, "excess_length_strategy")
    prompt = draft.number("max_prompt_len")
    if prompt:
        draft.put("data.max_prompt_length", int(prompt), "max_prompt_len", note="for sequences above max_length only")
    if draft.has("chat_template_kwargs"):
        draft.put(
            "data.chat_template_kwargs", dict(common.mapping(draft, "chat_template_kwargs")), "chat_template_kwargs"
        )
    template = str(draft.values.get("chat_template") or "")
    if template and template != "tokenizer_default":
        note = f"preftune uses the tokenizer's chat template, not axolotl's {template}; data.chat_template takes a file"
        draft.lose("chat_template", note=note)
    draft.keep("chat_template", note="preftune uses the tokenizer's chat template")


def _source(draft: Draft, item: dict[str, Any]) -> str:
    path, files = str(item.get("path") or ""), as_list(item.get("data_files"))
    if files and (Path(path).suffix or path in ("json", "csv", "parquet") or item.get("ds_type")):
        path = str(files[0])
    if len(files) > 1:
        draft.objective.append(f"note: of the data_files of {path}, add the others to data.train")
    kind = item.get("type")
    if isinstance(kind, str) and draft.method != "sft":
        draft.objective.append(f"note: the type {kind} of {path} is not carried over: {RENDERED}")
    elif isinstance(kind, dict):
        draft.objective.append(f"note: the custom type of {path} is not carried over; use data.columns and data.format")
    for key in ("shards", "shards_idx", "drop_system_message", "roles_to_train", "train_on_eos"):
        if item.get(key) not in (None, False):
            draft.objective.append(f"note: {key} {item[key]} of {path} is not carried over")
    split = None if "." in Path(path).suffix else item.get("split")
    return common.hub_name(path, item.get("name"), split, item.get("revision"))


def _fields(draft: Draft, sets: list[dict[str, Any]]) -> None:
    """Set data.columns from the field names of the data sets, if all have the same."""
    names = {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected"}
    found_names = []
    for item in sets:
        kind: Any = item.get("type") if isinstance(item.get("type"), dict) else {}
        custom = {"field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected"}
        columns = {name: item[key] for key, name in names.items() if item.get(key) and item[key] != name}
        columns |= {name: kind[key] for key, name in custom.items() if kind.get(key) and kind[key] != name}
        found_names.append(columns)
    if found_names and found_names[0] and all(columns == found_names[0] for columns in found_names):
        draft.put("data.columns", found_names[0], "datasets", note="its field_... names")
    elif any(found_names):
        draft.objective.append("note: the data sets have different field names; set data.columns")


def _held_out(draft: Draft) -> None:
    tests = [item for item in as_list(draft.values.get("test_datasets")) if isinstance(item, dict)]
    share = draft.number("val_set_size")
    if tests:
        draft.put("data.eval", _source(draft, tests[0]), "test_datasets")
    elif share and share < 1:
        draft.put("data.eval", float(share), "val_set_size")
    elif share:
        draft.lose("val_set_size", note="a number of rows; set data.eval to a share of the data")
    steps = draft.number("eval_steps")
    if steps and steps >= 1 and "eval" in draft.config.get("data", {}):
        draft.put("train.eval_every", int(steps), "eval_steps", "eval_strategy")
    note = "preftune evaluates before the first and after the last step; set train.eval_every to a number of steps"
    draft.lose("evals_per_epoch", "eval_steps", note=note)
    draft.keep("eval_strategy", "evaluation_strategy", note="see data.eval")
    draft.keep("val_set_size", note="no held-out data")
