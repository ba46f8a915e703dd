"""What preftune's own config has: settings that other programs have too are carried over where their key exists."""

from __future__ import annotations

from typing import Any

from preftune.config.commands import CONFIGS
from preftune.config.hints import section_of
from preftune.moving.draft import Draft, as_list, as_number


def has_key(path: str, method: str = "dpo") -> bool:
    """Return whether the config of `preftune METHOD` has the key `path`, as section.key."""
    section, _, key = path.partition(".")
    field = CONFIGS[method].model_fields.get(section)
    return field is not None and key in getattr(section_of(field.annotation), "model_fields", {})


def best(draft: Draft, patience: str) -> None:
    """Set `best` from load_best_model_at_end, metric_for_best_model, greater_is_better and a patience."""
    keys = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better", patience)
    rounds = as_number(draft.get(patience))
    if not draft.on("load_best_model_at_end") and not rounds:
        draft.keep(*keys, note="preftune keeps the weights of the last step")
        return
    if "eval" not in draft.config.get("data", {}) or "eval_every" not in draft.config.get("train", {}):
        draft.lose(*keys, note="set data.eval, train.eval_every to a number of steps, and best={metric: loss}")
        return
    metric = str(draft.get("metric_for_best_model") or "loss").removeprefix("eval_")
    draft.put("best.metric", metric, "load_best_model_at_end", "metric_for_best_model")
    if draft.has("greater_is_better"):
        draft.put("best.direction", "higher" if draft.on("greater_is_better") else "lower", "greater_is_better")
    if not draft.on("load_best_model_at_end"):
        draft.put("best.final", "last", patience, note="load_best_model_at_end is off")
    if rounds and rounds >= 1:
        draft.put("best.patience", int(rounds), patience)


def quantised(draft: Draft, bits: float | None, *keys: str) -> None:
    """Set model.quant for frozen weights in 4 or 8 bits, if the run trains an adapter."""
    if bits in (4, 8) and "lora" in draft.config:
        note = "needs pip install 'preftune[quant]'" if bits == 4 else "one scale per output row"
        draft.put("model.quant", "nf4" if bits == 4 else "int8", *keys, note=note)


def variants(draft: Draft, dora: str, modules: str) -> None:
    """Set the variants of LoRA."""
    if draft.on(dora):
        draft.put("lora.dora", True, dora)
    names = [str(name) for name in as_list(draft.values.get(modules))]
    if names:
        draft.put("lora.modules_to_save", names, modules)


def limit(draft: Draft, key: str) -> None:
    """Set data.limit, the number of rows to read."""
    rows = as_number(draft.get(key))
    if rows and rows >= 1 and has_key("data.limit", draft.method):
        draft.put("data.limit", int(rows), key)


def mixed(paths: list[str], amounts: list[Any], kind: str) -> list[Any]:
    """Return sources with their `weight` or `share`; the paths alone if preftune reads all rows of each source."""
    numbers = [as_number(amount) for amount in amounts]
    if not has_mixtures() or len(numbers) != len(paths) or any(number is None or number <= 0 for number in numbers):
        return list(paths)
    if kind == "share":
        total = sum(number for number in numbers if number)
        numbers = [round(number / total, 6) if number else None for number in numbers]
    elif all(number == 1 for number in numbers):
        return list(paths)
    return [{"path": path, kind: number} for path, number in zip(paths, numbers, strict=True)]


def has_mixtures() -> bool:
    """Return whether data.train takes sources with a weight or a share."""
    return "SourceConfig" in str(section_of(CONFIGS["dpo"].model_fields["data"].annotation).model_fields["train"])
