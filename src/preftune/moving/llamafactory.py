"""LLaMA-Factory: `llamafactory-cli train FILE`.

Facts are from LLaMA-Factory 0.9.5 (hparams/, train/dpo/trainer.py), which runs on TRL 0.18 to 0.24.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError
from preftune.moving import common, ours, preference
from preftune.moving.draft import Draft, as_list, truth
from preftune.moving.read import Source

DEFAULTS = common.DEFAULTS | {
    "pref_beta": 0.1, "pref_loss": "sigmoid", "simpo_gamma": 0.5, "lora_rank": 8, "lora_target": "all",
    "finetuning_type": "lora", "kto_chosen_weight": 1.0, "kto_rejected_weight": 1.0, "cutoff_len": 2048,
    "dataset_dir": "data",
}  # fmt: skip
STAGES = {"dpo": "dpo", "kto": "dpo", "rm": "reward", "sft": "sft"}
#: Columns of dataset_info.json and preftune's fields.
COLUMNS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "response": "response", "system": "system"}


def convert(source: Source, processes: int | None) -> Draft:
    """Return the draft of preftune's config."""
    if "stage" not in source.values and {"model_class", "peft_config", "dist_config"} & set(source.values):
        what = "this is a config of LLaMA-Factory's trainer v1, which is not supported"
        raise ConfigError(what, where=source.file, fix="start from preftune init dpo")
    aliases = {"reward": "rm"}
    stage = aliases.get(source.method, source.method) or str(source.values.get("stage") or "sft")
    if stage not in STAGES:
        fix = "see preftune init ppo" if stage == "ppo" else "preftune trains on preferences and demonstrations"
        raise ConfigError(f"the stage {stage} is not converted", where=source.file, fix=fix)
    rank = {"lora_alpha": 2 * (source.values.get("lora_rank") or 8)}
    draft = Draft("LLaMA-Factory", source.values, DEFAULTS | rank, STAGES[stage], processes)
    draft.keep("stage", "do_train", "do_eval", note=f"the command preftune {draft.method}")
    _model(draft)
    _data(draft, source.file)
    if stage == "kto":
        _kto(draft)
    elif stage == "dpo":
        _dpo(draft)
    common.optimizer(draft)
    common.batch(draft, "per_device_train_batch_size", "gradient_accumulation_steps", processes)
    common.length(draft)
    common.saving(draft)
    common.trackers(draft)
    common.output(draft)
    ours.best(draft, "early_stopping_steps")
    return draft


def _model(draft: Draft) -> None:
    if draft.has("model_name_or_path"):
        revision = draft.values.get("model_revision")
        path = str(draft.values["model_name_or_path"])
        path += f"@{revision}" if revision and revision != "main" else ""
        draft.put("model.path", path, "model_name_or_path", "model_revision")
    if draft.on("pure_bf16"):
        draft.put("model.dtype", "bf16", "pure_bf16", "bf16", note="with fp32 master weights, unlike pure_bf16")
    else:
        common.precision(draft, weights="infer_dtype")
    if draft.has("disable_gradient_checkpointing"):
        off = draft.on("disable_gradient_checkpointing")
        draft.put("model.gradient_checkpointing", not off, "disable_gradient_checkpointing")
    kind = str(draft.get("finetuning_type"))
    if kind == "lora":
        names = [str(name) for name in as_list(draft.get("lora_target"))]
        targets: Any = "all-linear" if names in (["all"], ["all-linear"]) else names
        common.adapter(draft, "lora_rank", "lora_alpha", targets, "lora_target")
        ours.variants(draft, "use_dora", "additional_target")
        ours.quantised(draft, draft.number("quantization_bit"), "quantization_bit")
        draft.keep("finetuning_type", note="the section lora")
        if draft.method == "dpo":
            draft.keep("lora_dropout", note="the trainers for DPO and KTO turn dropout off, in the adapter as well")
        if draft.has("adapter_name_or_path"):
            names = [str(name) for name in as_list(draft.values["adapter_name_or_path"])]
            note = "set model.path to this adapter folder; with lora, it is merged and a new adapter is trained"
            draft.lose("adapter_name_or_path", note=note)
    elif kind == "full":
        draft.keep("finetuning_type", note="all weights: no section lora")
    else:
        draft.lose("finetuning_type", note=f"preftune has no {kind}; this config trains all weights. Add lora={{}}")
    draft.keep("lora_rank", "lora_alpha", "lora_target", "lora_dropout", note=f"no effect with finetuning_type {kind}")
    if draft.has("ref_model"):
        draft.put("reference.path", str(draft.values["ref_model"]), "ref_model")


def _dpo(draft: Draft) -> None:
    """Set `loss` to what LLaMA-Factory trains."""
    kind, beta = str(draft.get("pref_loss")).lower(), float(draft.number("pref_beta") or 0.1)
    smoothing = float(draft.number("dpo_label_smoothing") or 0)
    term: preference.Term = {"name": "sigmoid", "beta": beta}
    if kind == "simpo":
        term = {"name": "simpo", "beta": beta, "gamma": float(draft.number("simpo_gamma") or 0)}
    elif kind == "orpo":
        term = {"name": "orpo", "beta": beta}
    elif kind == "ipo":
        term = {"name": "sigmoid_norm", "beta": beta}
        draft.objective.append(
            "pref_loss ipo: with TRL 0.20 and later, LLaMA-Factory trains -log sigmoid(beta h') on mean log-probs per "
            f"token, not IPO. For IPO, set loss={{name: ipo, beta: {beta:g}}}"
        )
    elif kind in ("hinge", "kto_pair"):
        name = "hinge" if kind == "hinge" else "kto"
        draft.objective.append(
            f"pref_loss {kind}: with TRL 0.20 and later, LLaMA-Factory trains the sigmoid loss. For {kind}, set "
            f"loss={{name: {name}, beta: {beta:g}}}"
        )
    elif kind != "sigmoid":
        draft.refuse(f"preftune has no pref_loss {kind!r}")
        return
    if kind == "sigmoid" and smoothing:
        term["label_smoothing"] = smoothing
    alpha = draft.number("ld_alpha")
    if alpha is not None and kind == "sigmoid" and not smoothing:
        term = {"name": "ld_dpo", "beta": beta, "alpha": float(alpha)}
        draft.objective.append("ld_alpha: LLaMA-Factory weights the policy's tokens only; preftune, as the paper, both")
    result = [term]
    weight, share = float(draft.number("pref_bco_weight") or 0), float(draft.number("pref_ftx") or 0)
    if weight > 1e-6 and kind not in ("simpo", "orpo"):
        result = [{**term, "weight": round(1 / (1 + weight), 6)}]
        result.append({"name": "bco_pair", "beta": beta, "weight": round(weight / (1 + weight), 6)})
        draft.objective.append(
            f"pref_bco_weight: (dpo + {weight:g} bco) / (1 + {weight:g}); bco subtracts a running mean there, "
            "and the mean of the step in preftune"
        )
    if share > 1e-6:
        result = [{**each, "weight": each.get("weight", 1.0)} for each in result]
        result.append({"name": "nll", "weight": share})
    keys = ("pref_loss", "pref_beta", "dpo_label_smoothing", "simpo_gamma", "pref_ftx", "pref_bco_weight", "ld_alpha")
    preference.put_loss(draft, result, *keys)


def _kto(draft: Draft) -> None:
    beta = float(draft.number("pref_beta") or 0.1)
    good, bad = draft.number("kto_chosen_weight"), draft.number("kto_rejected_weight")
    term = {"name": "kto", "beta": beta, "desirable": float(good or 1), "undesirable": float(bad or 1)}
    preference.put_loss(draft, [term], "pref_beta", "kto_chosen_weight", "kto_rejected_weight")
    draft.objective.append("kto: TRL estimates the KL on each micro-batch, preftune on the whole step")
    if draft.number("pref_ftx"):
        draft.lose("pref_ftx", note="a loss on labelled responses cannot be added to nll, a loss on pairs")


def _data(draft: Draft, file: str) -> None:
    names = [str(name) for name in as_list(draft.values.get("dataset"))]
    train = [_data_set(draft, name, file) for name in names]
    probabilities = as_list(draft.values.get("interleave_probs"))
    if probabilities and ours.has_mixtures():
        draft.put("data.train", ours.mixed(train, probabilities, "share"), "dataset", "dataset_dir", "interleave_probs")
        draft.keep("mix_strategy", note="the shares of data.train")
    elif train:
        draft.put("data.train", train[0] if len(train) == 1 else train, "dataset", "dataset_dir")
    held_out: Any = None
    keys = ["val_size"]
    if draft.has("eval_dataset"):
        sets = [_data_set(draft, str(name), file) for name in as_list(draft.values["eval_dataset"])]
        held_out, keys = sets[0], ["eval_dataset"]
        if len(sets) > 1:
            draft.objective.append(f"note: data.eval is one file; {', '.join(sets[1:])} are not carried over")
    else:
        size = draft.number("val_size")
        held_out = size if size and size < 1 else None
    if held_out is not None and str(draft.get("eval_strategy")).lower() == "no":
        draft.put("data.eval", held_out, *keys)
    common.evaluating(draft, held_out, *keys)
    ours.limit(draft, "max_samples")
    limit = draft.number("cutoff_len")
    if limit:
        draft.put("data.max_length", int(limit), "cutoff_len")
    template = draft.values.get("template")
    if template and template not in ("default", "empty"):
        note = (
            f"preftune uses the chat template of the tokenizer, not LLaMA-Factory's {template}; compare with data show"
        )
        draft.put("data.as_chat", True, "template", note=note)
    if draft.has("enable_thinking"):
        arguments = {"enable_thinking": draft.on("enable_thinking")}
        draft.put("data.chat_template_kwargs", arguments, "enable_thinking")
    if draft.on("mask_history") and draft.method == "sft":
        draft.put("data.scored_turns", "last", "mask_history")


def _data_set(draft: Draft, name: str, file: str) -> str:
    """Return the file or Hub id of a data set, from dataset_info.json if that file is here."""
    folder = Path(str(draft.get("dataset_dir")))
    for parent in (Path(), *Path(file).resolve().parents[:4]):
        index = parent / folder / "dataset_info.json"
        if not index.is_file():
            continue
        try:
            info = json.loads(index.read_text(encoding="utf-8")).get(name)
        except (ValueError, AttributeError):
            raise ConfigError("is not a valid JSON object", where=str(index), fix="repair the file") from None
        if info is None:
            continue
        _columns(draft, info)
        if info.get("file_name"):
            return str(index.parent / str(info["file_name"]))
        hub = info.get("hf_hub_url") or info.get("script_url")
        if hub:
            return common.hub_name(str(hub), info.get("subset"), info.get("split", "train"))
    if not Path(name).exists():
        draft.objective.append(
            f"note: dataset {name} is a name in dataset_info.json; set data.train to its file or Hub id"
        )
    return name


def _columns(draft: Draft, info: dict[str, Any]) -> None:
    """Set data.columns from the columns of dataset_info.json that have other names."""
    columns = info.get("columns") or {}
    theirs = {COLUMNS[key]: value for key, value in columns.items() if key in COLUMNS and value != COLUMNS[key]}
    usual = {("prompt", "instruction"), ("response", "output")}
    theirs = {key: value for key, value in theirs.items() if (key, value) not in usual}
    if theirs and truth(info.get("ranking")) and info.get("formatting", "alpaca") == "alpaca":
        draft.put("data.columns", theirs, "dataset", note="from dataset_info.json")
