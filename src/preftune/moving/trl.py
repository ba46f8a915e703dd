"""TRL: `trl dpo --config FILE`, its scripts, and the recipes of the alignment handbook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preftune.errors import ConfigError
from preftune.moving import common, ours, preference
from preftune.moving.draft import Draft, as_list, as_mapping, as_number, truth
from preftune.moving.read import Source

DEFAULTS = common.DEFAULTS | {
    "logging_steps": 10, "beta": 0.1, "max_length": 1024, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05,
    "cpo_alpha": 1.0, "simpo_gamma": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.0,
    "discopop_tau": 0.05, "f_alpha_divergence_coef": 0.5, "dataset_train_split": "train", "dataset_test_split": "test",
}  # fmt: skip
RATES = {"dpo": 1e-6, "kto": 1e-6, "orpo": 1e-6, "cpo": 1e-6, "simpo": 1e-6, "sft": 2e-5, "reward": 1e-4}
#: Keys that only versions before 0.29 have. A config with one of them was written for such a version.
OLD = {
    "rpo_alpha", "reference_free", "max_prompt_length", "max_completion_length", "generate_during_eval",
    "max_target_length", "model_adapter_name", "ref_adapter_name", "force_use_ref_model",
    "use_logits_to_keep", "label_pad_token_id",
    "padding_value", "is_encoder_decoder", "dataset_mixer", "use_num_logits_to_keep", "use_flash_attention_2",
}  # fmt: skip
BITS = ("load_in_4bit", "load_in_8bit")
METHODS = ("dpo", "kto", "orpo", "cpo", "simpo", "sft", "reward")
OURS = {"sft": "sft", "reward": "reward"}


def method_of(source: Source) -> str:
    """Return the trainer that a config is for: what the command says, what only that trainer has, or its file name."""
    values, name = source.values, source.method
    aliases = {"reward_modeling": "reward", "rm": "reward"}
    name = aliases.get(name, name)
    if name and name not in METHODS:
        what = f"preftune cannot run {name} of TRL"
        raise ConfigError(what, where=source.file, fix="preftune has dpo, sft, reward, ppo and iterate")
    if name:
        return name
    if "reward_funcs" in values:
        fix = "preftune has ppo (with a value model) and iterate: see preftune init ppo"
        raise ConfigError("this is a config of GRPO, which preftune does not have", where=source.file, fix=fix)
    own_keys = {"desirable_weight": "kto", "undesirable_weight": "kto", "cpo_alpha": "cpo", "simpo_gamma": "cpo"}
    own_keys |= {"center_rewards_coefficient": "reward", "assistant_only_loss": "sft", "completion_only_loss": "sft"}
    own = [method for key, method in own_keys.items() if key in values]
    if own or values.get("loss_type") == "kto":
        return own[0] if own else "kto"
    path = Path(source.file)
    words = f"{path.parent.name} {path.stem}".lower().replace("-", "_").replace("_", " ").split()
    in_name = [method for method in METHODS if method in words]
    dpo = {"loss_type", "beta", "precompute_ref_log_probs", "max_prompt_length", "ld_alpha"} & set(values)
    sft = {"packing", "dataset_text_field", "max_seq_length"} & set(values)
    if len(in_name) == 1 or dpo or sft:
        return in_name[0] if len(in_name) == 1 else "dpo" if dpo else "sft"
    what = "a config of TRL does not say which trainer reads it"
    raise ConfigError(what, where=source.file, fix=f"add --method {', '.join(METHODS)}")


def convert(source: Source, processes: int | None) -> Draft:
    """Return the draft of preftune's config."""
    method = method_of(source)
    defaults = DEFAULTS | {"learning_rate": RATES[method]}
    draft = Draft("TRL", source.values, defaults, OURS.get(method, "dpo"), processes)
    model(draft)
    data(draft)
    {"sft": sft, "reward": reward}.get(method, lambda d: loss(d, method))(draft)
    common.optimizer(draft)
    common.batch(draft, "per_device_train_batch_size", "gradient_accumulation_steps", processes)
    common.length(draft)
    common.saving(draft)
    common.memory(draft)
    common.trackers(draft)
    common.output(draft)
    ours.best(draft, "early_stopping_patience")
    return draft


def model(draft: Draft) -> None:
    """Set `model`, `lora` and `reference`."""
    if draft.has("model_name_or_path"):
        revision = draft.values.get("model_revision")
        path = str(draft.values["model_name_or_path"])
        path += f"@{revision}" if revision and revision != "main" else ""
        draft.put("model.path", path, "model_name_or_path", "model_revision")
    common.precision(draft, weights="torch_dtype" if draft.has("torch_dtype") else "dtype", amp_default=True)
    if draft.on("use_peft"):
        targets = draft.values.get("lora_target_modules")
        listed = as_list(targets)
        note = "" if targets else "peft's default for Llama, Mistral and Qwen; other architectures differ"
        modules: Any = ["q_proj", "v_proj"] if not listed else "all-linear" if listed == ["all-linear"] else listed
        common.adapter(draft, "lora_r", "lora_alpha", modules, "lora_target_modules", note=note)
        ours.variants(draft, "use_dora", "lora_modules_to_save")
        ours.quantised(draft, 4 if draft.on("load_in_4bit") else 8 if draft.on("load_in_8bit") else None, *BITS)
        draft.keep("use_peft", note="the section lora")
        if draft.method != "sft" and truth(draft.values.get("disable_dropout", True)):
            draft.keep("lora_dropout", note="TRL turns dropout off (disable_dropout), in the adapter as well")
    else:
        lora = [key for key in draft.values if key.startswith("lora_")]
        lora += ["use_rslora", "use_dora", *BITS]
        draft.keep("use_peft", *lora, note="use_peft is off, so the adapter settings have no effect")
    if draft.has("ref_model"):
        draft.put("reference.path", str(draft.values["ref_model"]), "ref_model")
    if draft.on("precompute_ref_log_probs"):
        draft.put("reference.kind", "cached", "precompute_ref_log_probs")


def data(draft: Draft) -> None:
    """Set `data`."""
    train, evaluation, keys = _sources(draft)
    if train:
        draft.put("data.train", train[0] if len(train) == 1 else train, *keys)
    common.evaluating(draft, evaluation, "dataset_test_split")
    draft.keep("dataset_test_split", note="see data.eval")
    limit = draft.number("max_seq_length" if draft.has("max_seq_length") else "max_length")
    keys_of_length = [key for key in ("max_length", "max_seq_length") if draft.has(key)] or ["max_length"]
    if "max_length" in draft.values and draft.values["max_length"] is None:
        draft.objective.append("note: max_length is null, no limit there; data.max_length is TRL's default here")
    if limit:
        note = "preftune shortens the prompt first; TRL cuts the end of the sequence, with its EOS"
        draft.put("data.max_length", int(limit), *keys_of_length, note=note)
    if draft.has("max_prompt_length"):
        prompt = draft.number("max_prompt_length")
        note = "applies to sequences above max_length only; TRL shortened every longer prompt"
        draft.put("data.max_prompt_length", int(prompt or 1), "max_prompt_length", note=note)
    template = draft.values.get("chat_template")
    if isinstance(template, str) and ("{%" in template or "{{" in template):
        draft.lose("chat_template", note="save it as template.jinja and set data.chat_template=template.jinja")
    if draft.has("chat_template_path"):
        path = str(draft.values["chat_template_path"])
        if path.endswith(".jinja"):
            draft.put("data.chat_template", path, "chat_template_path")
        draft.lose("chat_template_path", note="save that model's template as a .jinja file for data.chat_template")
    if truth(draft.values.get("chat_template_kwargs")):
        draft.put(
            "data.chat_template_kwargs", dict(common.mapping(draft, "chat_template_kwargs")), "chat_template_kwargs"
        )


def _sources(draft: Draft) -> tuple[list[Any], Any, list[str]]:
    """Return the training data, the held-out data and the keys that they are from."""
    values = draft.values
    split, test = str(draft.get("dataset_train_split")), str(draft.get("dataset_test_split"))
    if values.get("datasets"):
        return _listed(draft, _items(values["datasets"], "datasets")), None, ["datasets"]
    if values.get("dataset_mixture"):
        return _mixture(draft)
    if values.get("dataset_mixer"):
        mixer = common.mapping(draft, "dataset_mixer")
        splits = [str(name) for name in as_list(values.get("dataset_splits"))] or ["train", "test"]
        train = [name for name in splits if "test" not in name] or splits[:1]
        held_out = [name for name in splits if "test" in name]
        if any(as_number(share) != 1 for share in mixer.values()):
            draft.objective.append("note: the shares in dataset_mixer are not carried over; all rows are used")
        draft.keep("dataset_splits", note="see data.train and data.eval")
        names = [common.hub_name(str(name), None, part) for name in mixer for part in train]
        first = next(iter(mixer))
        return names, common.hub_name(first, None, held_out[0]) if held_out else None, ["dataset_mixer"]
    name = values.get("dataset_name") or values.get("dataset")
    if not name:
        return [], None, []
    key = "dataset_name" if values.get("dataset_name") else "dataset"
    config = values.get("dataset_config") or values.get("dataset_config_name")
    keys = [key, "dataset_config", "dataset_config_name", "dataset_train_split"]
    held = common.hub_name(str(name), config, test)
    if held == str(name):
        held = ""
    return [common.hub_name(str(name), config, split)], held or None, [k for k in keys if draft.has(k)] or [key]


def _mixture(draft: Draft) -> tuple[list[Any], Any, list[str]]:
    """Return the data of `dataset_mixture` (alignment handbook)."""
    mixture = common.mapping(draft, "dataset_mixture")
    names = _listed(draft, _items(mixture.get("datasets"), "dataset_mixture.datasets"))
    size = as_number(mixture.get("test_split_size"))
    share = size if size is not None and 0 < size < 1 else None
    if size is not None and share is None:
        draft.objective.append(
            f"note: test_split_size {size:g} is a number of rows; set data.eval to a share of the data"
        )
    return names, share, ["dataset_mixture"]


def _items(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise ConfigError("must be a list of data sets", where=where, fix="correct this value")
    return [as_mapping(item, where) for item in value]


def _listed(draft: Draft, items: list[dict[str, Any]]) -> list[Any]:
    """Return the data sets of a list with their shares: `weight` in the alignment handbook, `fraction` in TRL."""
    names = [_item(draft, item) for item in items]
    fractions = [item.get("fraction") for item in items]
    if any(fraction is not None for fraction in fractions):
        return ours.mixed(names, fractions, "share")
    return ours.mixed(names, [item.get("weight", 1) for item in items], "weight")


def _item(draft: Draft, item: dict[str, Any]) -> str:
    """Return one data set of a list, and note what is not carried over."""
    path = item.get("path") or item.get("id") or ""
    files = as_list(item.get("data_files"))
    name = str(files[0]) if files and len(files) == 1 and "*" not in str(files[0]) else str(path)
    config, split = item.get("name") or item.get("config"), item.get("split", "train")
    for key in () if ours.has_mixtures() else ("weight", "fraction"):
        if item.get(key) not in (None, 1, 1.0):
            draft.objective.append(f"note: {key} {item[key]} of {name} is not carried over; all of its rows are used")
    return common.hub_name(name, config, split)


def loss(draft: Draft, method: str) -> None:
    """Set `loss` for the preference trainers."""
    beta = float(draft.number("beta") or 0.1)
    if method == "kto":
        _kto(draft, beta)
    elif method == "orpo":
        draft.objective.append(preference.ORPO_NOTE)
        preference.put_loss(draft, [{"name": "orpo", "beta": beta}], "beta")
    elif method in ("cpo", "simpo"):
        kind = str(draft.get("loss_type") or ("simpo" if method == "simpo" else "sigmoid")).lower()
        alpha, gamma = float(draft.number("cpo_alpha") or 0), float(draft.number("simpo_gamma") or 0)
        result = preference.cpo(draft, kind, beta, alpha, gamma)
        preference.put_loss(draft, result, "loss_type", "beta", "cpo_alpha", "simpo_gamma")
        draft.keep("simpo_gamma", "cpo_alpha", note="no effect with this loss_type")
    else:
        _dpo(draft, beta)


def _dpo(draft: Draft, beta: float) -> None:
    names, weights = preference.types_and_weights(draft, "loss_type", "loss_weights")
    old = bool(OLD & {key for key in draft.values if draft.has(key)})
    if old:
        keys = ", ".join(sorted(OLD & set(draft.values)))
        draft.objective.append(f"the config has {keys}: it is read as one of TRL 0.28 or earlier")
    version = preference.Version(old, old, old)
    if "kto_pair" in names:
        draft.objective.append("kto_pair: preftune's kto on pairs, with the KL estimate of mismatched responses")
        result: list[preference.Term] = [{"name": "kto", "beta": beta}]
    else:
        result = preference.terms(draft, beta, version, names, weights)
    alpha = draft.number("rpo_alpha")
    if alpha and result:
        note = f"rpo_alpha adds {alpha:g} x NLL of the chosen response, averaged over its tokens"
        draft.objective.append(f"{note}; TRL averages over all chosen tokens of a micro-batch")
        result = [{**term, "weight": term.get("weight", 1.0)} for term in result]
        result.append({"name": "nll", "weight": float(alpha)})
    read = (
        *("loss_type", "loss_weights", "beta", "label_smoothing", "rpo_alpha", "f_divergence_type"),
        *("f_alpha_divergence_coef", "ld_alpha", "use_weighting", "discopop_tau"),
    )
    preference.put_loss(draft, result, *read)
    if draft.on("reference_free"):
        draft.put("reference.kind", "none", "reference_free")


def _kto(draft: Draft, beta: float) -> None:
    kind = str(draft.get("loss_type") or "kto")
    if kind != "kto":
        draft.refuse(f"preftune has no {kind} for labelled responses")
        return
    good, bad = draft.number("desirable_weight"), draft.number("undesirable_weight")
    term = {"name": "kto", "beta": beta, "desirable": float(good or 1), "undesirable": float(bad or 1)}
    preference.put_loss(draft, [term], "loss_type", "beta", "desirable_weight", "undesirable_weight")
    draft.objective.append("kto: TRL estimates the KL on each micro-batch, preftune on the whole step")


def sft(draft: Draft) -> None:
    """Account for the settings of the SFT trainer."""
    kind = str(draft.get("loss_type") or "nll")
    if kind == "nll":
        draft.keep("loss_type", note="the mean NLL over tokens")
    draft.lose("loss_type", note=f"preftune sft has the NLL only, not {kind}")
    draft.keep("packing", "padding_free", note="preftune packs without padding; sequences do not see each other")
    draft.keep("completion_only_loss", "assistant_only_loss", note="preftune scores only what the assistant writes")
    if draft.has("completion_only_loss") and not draft.on("completion_only_loss"):
        draft.lose("completion_only_loss", note="preftune does not train on prompts")


def reward(draft: Draft) -> None:
    """Set the settings of the reward trainer."""
    centre = draft.number("center_rewards_coefficient")
    if centre is not None:
        draft.put("centre", float(centre), "center_rewards_coefficient")
