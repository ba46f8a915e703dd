"""ms-swift: the command lines of `swift rlhf` and `swift sft`.

Facts are from ms-swift 4.6 (arguments/, rlhf_trainers/dpo_trainer.py, cpo_trainer.py).
"""

from __future__ import annotations

import math
from typing import Any

from preftune.errors import ConfigError
from preftune.moving import common, ours, preference
from preftune.moving.draft import Draft, as_list
from preftune.moving.read import Source

DEFAULTS = common.DEFAULTS | {
    "per_device_train_batch_size": 1, "lr_scheduler_type": "cosine", "weight_decay": 0.1, "adam_beta2": 0.95,
    "logging_steps": 5, "lora_rank": 8, "lora_alpha": 32, "lora_dropout": 0.05, "tuner_type": "lora",
    "target_modules": ["all-linear"], "cpo_alpha": 1.0, "simpo_gamma": 1.0, "desirable_weight": 1.0,
    "undesirable_weight": 1.0, "discopop_tau": 0.05, "f_alpha_divergence_coef": 0.5, "eval_strategy": "steps",
    "output_dir": "output",
}  # fmt: skip
KINDS = {"dpo": "dpo", "kto": "dpo", "orpo": "dpo", "simpo": "dpo", "cpo": "dpo", "rm": "reward", "sft": "sft"}


def convert(source: Source, processes: int | None) -> Draft:
    """Return the draft of preftune's config."""
    values = source.values
    command = source.method if source.method in (*KINDS, "rlhf", "pt") else "rlhf"
    kind = str(values.get("rlhf_type", "dpo")) if command == "rlhf" else command
    if kind not in KINDS:
        fix = "see preftune init ppo" if kind == "ppo" else "preftune has dpo, sft, reward, ppo and iterate"
        raise ConfigError(f"swift {command} with {kind} is not converted", where=source.file, fix=fix)
    tuner = str(values.get("tuner_type") or values.get("train_type") or "lora")
    rate = {"learning_rate": 1e-5 if tuner == "full" else 1e-4}
    draft = Draft("ms-swift", values, DEFAULTS | rate, KINDS[kind], processes)
    draft.keep("rlhf_type", note=f"the command preftune {draft.method}")
    _model(draft, tuner)
    _data(draft)
    if draft.method == "dpo":
        _loss(draft, kind)
    centre = draft.number("center_rewards_coefficient") if kind == "rm" else None
    if centre is not None:
        draft.put("centre", float(centre), "center_rewards_coefficient")
    _batch(draft, processes)
    common.optimizer(draft)
    common.length(draft)
    common.saving(draft)
    common.memory(draft)
    common.trackers(draft)
    common.output(draft)
    ours.best(draft, "early_stop_interval")
    return draft


def _batch(draft: Draft, processes: int | None) -> None:
    """Set the batch. Without gradient_accumulation_steps, ms-swift chooses it so that a step has at least 16 pairs."""
    if not draft.has("gradient_accumulation_steps"):
        size = draft.number("per_device_train_batch_size") or 1
        steps = max(1, math.ceil(16 / size / (processes or 1)))
        draft.defaults = {**draft.defaults, "gradient_accumulation_steps": steps}
    common.batch(draft, "per_device_train_batch_size", "gradient_accumulation_steps", processes)


def _model(draft: Draft, tuner: str) -> None:
    if draft.has("model"):
        revision = draft.values.get("model_revision")
        path = str(draft.values["model"]) + (f"@{revision}" if revision and revision != "master" else "")
        draft.put("model.path", path, "model", "model_revision")
        if not draft.on("use_hf") and not path.startswith((".", "/")):
            draft.objective.append(f"note: ms-swift reads {path} from ModelScope, preftune from the Hugging Face Hub")
    dtype = str(draft.values.get("torch_dtype") or "")
    if dtype:
        name = {"bfloat16": "bf16", "float32": "fp32"}.get(dtype, "auto")
        draft.put("model.dtype", name, "torch_dtype", note="with fp32 master weights" if name == "bf16" else "")
    key = "train_type" if draft.has("train_type") else "tuner_type"
    if tuner == "lora":
        names = [str(name) for name in as_list(draft.get("target_modules"))]
        targets: Any = "all-linear" if names == ["all-linear"] else names
        common.adapter(draft, "lora_rank", "lora_alpha", targets, "target_modules")
        ours.variants(draft, "use_dora", "modules_to_save")
        ours.quantised(draft, draft.number("quant_bits"), "quant_bits", "quant_method")
        draft.keep(key, note="the section lora")
        draft.lose("adapters", "ref_adapters", note="set model.path to this adapter folder")
        if draft.method == "dpo":
            draft.keep("lora_dropout", note="TRL turns dropout off (disable_dropout), in the adapter as well")
        elif draft.get("lora_dropout"):
            draft.objective.append(f"note: lora_dropout {draft.get('lora_dropout')} there, none in preftune")
    elif tuner == "full":
        draft.keep(key, note="all weights: no section lora")
    else:
        draft.lose(key, note=f"preftune has no {tuner}; this config trains all weights. Add lora={{}}")
    draft.keep("lora_rank", "lora_alpha", "target_modules", note=f"no effect with {key} {tuner}")
    if draft.has("ref_model"):
        draft.put("reference.path", str(draft.values["ref_model"]), "ref_model")


def _loss(draft: Draft, kind: str) -> None:
    beta = float(draft.number("beta") or (2.0 if kind == "simpo" else 0.1))
    names, weights = preference.types_and_weights(draft, "loss_type", "loss_weights")
    if kind == "kto":
        good, bad = draft.number("desirable_weight"), draft.number("undesirable_weight")
        term = {"name": "kto", "beta": beta, "desirable": float(good or 1), "undesirable": float(bad or 1)}
        if draft.has("loss_type") and names != ["kto"]:
            draft.refuse(f"preftune has no {names[0]} for labelled responses")
        preference.put_loss(draft, [term], "beta", "desirable_weight", "undesirable_weight", "loss_type")
        draft.objective.append("kto: TRL estimates the KL on each micro-batch, preftune on the whole step")
    elif kind == "orpo":
        draft.objective.append(preference.ORPO_NOTE)
        preference.put_loss(draft, [{"name": "orpo", "beta": beta}], "beta")
    elif kind in ("simpo", "cpo"):
        name = names[0] if draft.has("loss_type") else "simpo" if kind == "simpo" else "sigmoid"
        alpha, gamma = float(draft.number("cpo_alpha") or 0), float(draft.number("simpo_gamma") or 0)
        result = preference.cpo(draft, name, beta, alpha, gamma)
        preference.put_loss(draft, result, "beta", "loss_type", "cpo_alpha", "simpo_gamma")
        if kind == "simpo" and not draft.has("cpo_alpha"):
            draft.objective.append("cpo_alpha is not set: ms-swift's default is 1, not 0")
    else:
        result = preference.terms(draft, beta, preference.Version(True, True, True), names, weights)
        share = float(draft.number("rpo_alpha") or 0)
        if share and result:
            draft.objective.append(
                f"rpo_alpha adds {share:g} x NLL, averaged over all chosen tokens of a micro-batch there"
            )
            result = [{**term, "weight": term.get("weight", 1.0)} for term in result]
            result.append({"name": "nll", "weight": share})
        keys = ("loss_type", "loss_weights", "beta", "label_smoothing", "rpo_alpha", "ld_alpha", "f_divergence_type")
        preference.put_loss(draft, result, *keys, "f_alpha_divergence_coef", "discopop_tau")


def _data(draft: Draft) -> None:
    names = as_list(draft.values.get("dataset"))
    sources = [_source(draft, str(name)) for name in names]
    if sources:
        draft.put("data.train", sources[0] if len(sources) == 1 else sources, "dataset")
        if not draft.on("use_hf") and any(not str(name).startswith((".", "/")) for name in names):
            draft.objective.append("note: ms-swift reads data from ModelScope; check that the Hub has the same name")
    if draft.has("val_dataset"):
        held_out = [_source(draft, str(name)) for name in as_list(draft.values["val_dataset"])]
        common.evaluating(draft, held_out[0], "val_dataset")
    else:
        share = draft.number("split_dataset_ratio")
        if share:
            common.evaluating(draft, float(share), "split_dataset_ratio")
        draft.keep("split_dataset_ratio", "eval_steps", "eval_strategy", note="no held-out data")
    limit = draft.number("max_length")
    if limit:
        draft.put("data.max_length", int(limit), "max_length")
    else:
        draft.objective.append(
            "note: max_length is not set: the model's context there, data.max_length 1024 in preftune"
        )
    strategy = str(draft.values.get("truncation_strategy") or "delete")
    overlong = {"delete": "drop", "left": "truncate", "right": "truncate"}.get(strategy, "drop")
    note = "preftune shortens the prompt" if overlong == "truncate" else ""
    draft.put("data.overlong", overlong, "truncation_strategy", note=note)
    draft.put("data.as_chat", True, "template", note="preftune uses the tokenizer's chat template")
    if draft.has("enable_thinking"):
        draft.put("data.chat_template_kwargs", {"enable_thinking": draft.on("enable_thinking")}, "enable_thinking")
    if draft.on("system"):
        draft.lose("system", note="add the system message to the rows (column system)")


def _source(draft: Draft, name: str) -> Any:
    """Return a data set as preftune writes it. ms-swift writes name:subset#rows."""
    path, _, rows = name.partition("#")
    if rows.isdecimal() and int(rows) and ours.has_mixtures():
        return {"path": path.removeprefix("HF::").removeprefix("MS::"), "limit": int(rows)}
    if rows:
        draft.objective.append(f"note: {name}: the first {rows} rows there; preftune reads all rows of {path}")
    if path.startswith(("HF::", "MS::")):
        path = path[4:]
    return path
