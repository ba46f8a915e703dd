"""Suggestions for unknown config keys: keys of other sections, names that TRL uses, and misspelt names."""

from __future__ import annotations

import difflib
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

KeyPath = tuple[str | int, ...]

#: Names in TRL, transformers, LLaMA-Factory and axolotl, and other names that people type, with the config keys that do
#: the same. Keys that a method lacks are not suggested.
TRL_NAMES = {
    "beta": "loss.beta ppo.kl_coef", "loss_type": "loss.name", "loss_weights": "loss",
    "label_smoothing": "loss.label_smoothing", "learning_rate": "optim.lr",
    "lr_scheduler_type": "optim.schedule", "warmup_ratio": "optim.warmup",
    "warmup_steps": "optim.warmup", "per_device_train_batch_size": "batch.pairs rollout.prompts",
    "gradient_accumulation_steps": "batch.pairs rollout.prompts", "num_train_epochs": "train.epochs",
    "logging_steps": "train.log_every", "eval_steps": "train.eval_every", "save_steps": "train.save_every",
    "output_dir": "out", "report_to": "track", "model_name_or_path": "model.path", "sft_model_path": "model.path",
    "torch_dtype": "model.dtype", "bf16": "model.dtype", "attn_implementation": "model.attention",
    "torch_compile": "model.compile", "ref_model": "reference.path", "reference_free": "reference.kind",
    "precompute_ref_log_probs": "reference.kind", "train_dataset": "data.train", "dataset_name": "data.train",
    "eval_dataset": "data.eval", "truncation_mode": "data.overlong", "response_length": "rollout.max_new_tokens",
    "max_completion_length": "rollout.max_new_tokens sample.max_new_tokens data.max_length",
    "num_generations": "rollout.responses sample.n", "reward_model_path": "reward", "cliprange": "ppo.clip",
    "center_rewards_coefficient": "centre", "lora_r": "lora.rank", "lora_alpha": "lora.alpha",
    "lora_target_modules": "lora.targets", "peft_config": "lora", "cliprange_value": "ppo.value_clip",
    "vf_coef": "ppo.value_coef", "num_ppo_epochs": "ppo.epochs", "num_mini_batches": "ppo.minibatches",
    "pref_beta": "loss.beta", "pref_loss": "loss.name", "rl_beta": "loss.beta", "dpo_beta": "loss.beta",
    "batch_size": "batch.pairs rollout.prompts", "train_batch_size": "batch.pairs rollout.prompts",
    "micro_batch_size": "batch.tokens", "num_epochs": "train.epochs", "epoch": "train.epochs",
    "steps": "train.max_steps", "num_steps": "train.max_steps", "lr_scheduler": "optim.schedule",
    "scheduler": "optim.schedule",
    "grad_clip": "optim.max_grad_norm", "max_len": "data.max_length max_length",
    "max_seq_length": "data.max_length max_length", "max_seq_len": "data.max_length max_length",
    "sequence_len": "data.max_length max_length", "cutoff_len": "data.max_length max_length",
    "model_name": "model.path", "model_path": "model.path", "base_model": "model.path", "model_id": "model.path",
    "dataset": "data.train", "datasets": "data.train", "train_file": "data.train", "data_path": "data.train",
    "eval_file": "data.eval", "val_size": "data.eval", "val_set_size": "data.eval", "output": "out", "out_dir": "out",
    "save_path": "out", "logger": "track", "use_lora": "lora", "peft": "lora", "adapter": "lora",
    "use_peft": "lora", "lora_rank": "lora.rank", "lora_target": "lora.targets", "lora_modules": "lora.targets",
    "target_modules": "lora.targets", "r": "lora.rank", "fp16": "model.dtype", "precision": "model.dtype",
    "use_gradient_checkpointing": "model.gradient_checkpointing", "attn": "model.attention",
    "flash_attention": "model.attention", "ref_model_path": "reference.path",
    "random_seed": "train.seed", "loss_name": "loss.name", "metric_for_best_model": "best.metric",
    "load_best_model_at_end": "best.metric", "greater_is_better": "best.direction",
    "early_stopping_patience": "best.patience", "early_stopping_threshold": "best.min_change",
    "patience": "best.patience", "save_strategy": "train.save_every",
}  # fmt: skip


def suggest(schema: type[BaseModel], path: KeyPath) -> str:
    """Return a suggestion for the unknown key at `path`: "did you mean optim.lr?", or the list of keys."""
    key, parent = str(path[-1]), path[:-1]
    sections = {name: section_of(field.annotation) for name, field in schema.model_fields.items()}
    matches = [f"{name}.{key}" for name, section in sections.items() if key in getattr(section, "model_fields", ())]
    matches += [name for name in TRL_NAMES.get(key, "").split() if _exists(schema, name) and name not in matches]
    siblings = fields_at(schema, parent)
    if not matches and key not in TRL_NAMES:
        close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.5)
        matches = [".".join(map(str, (*parent, name))) for name in close]
    return f"did you mean {' or '.join(matches)}?" if matches else f"known keys: {', '.join(sorted(siblings))}"


def fields_at(schema: type[BaseModel], path: KeyPath) -> dict[str, FieldInfo]:
    """Return the keys of the section at `path`."""
    section: Any = schema
    for part in path:
        section = entry_of(section) if isinstance(part, int) else section_of(section.model_fields[part].annotation)
    return dict(section.model_fields)


def section_of(annotation: Any) -> Any:
    """Return the model class of `Model` and of `Model | None`, and any other annotation unchanged."""
    if get_origin(annotation) in (Union, UnionType):
        models = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        return models[0] if models else annotation
    return annotation


def entry_of(annotation: Any) -> Any:
    """Return the model class of the entries of a list, anywhere inside an annotation, and None without one."""
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
        if model := entry_of(part):
            return model
    return None


def _exists(schema: type[BaseModel], name: str) -> bool:
    """Return whether `schema` has the key `name`. Every key below `loss` counts: losses have different parameters."""
    section, _, key = name.partition(".")
    field = schema.model_fields.get(section)
    return field is not None and (not key or key in getattr(section_of(field.annotation), "model_fields", (key,)))
