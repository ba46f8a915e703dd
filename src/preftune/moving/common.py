"""Settings of transformers' Trainer: TRL, LLaMA-Factory, axolotl and ms-swift have them under similar names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.moving.draft import Draft, as_list, as_mapping, as_number, truth

#: Defaults of transformers.TrainingArguments (5.23).
DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5, "lr_scheduler_type": "linear", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0,
    "num_train_epochs": 3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "seed": 42,
    "logging_steps": 500, "save_strategy": "steps", "save_steps": 500, "eval_strategy": "no", "optim": "adamw_torch",
}  # fmt: skip
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
#: Schedules of transformers: preftune's schedule, and what differs.
SCHEDULES = {
    "linear": ("linear", ""),
    "cosine": ("cosine", ""),
    "constant": ("constant", ""),
    "constant_with_warmup": ("constant", ""),
    "cosine_with_restarts": ("cosine", "one cycle only"),
    "polynomial": ("linear", "the power 1 of the default; it ends at 1e-7 instead of 0"),
    "cosine_with_min_lr": ("cosine", "preftune's schedules end at 0, not at a minimum"),
    "cosine_warmup_with_min_lr": ("cosine", "preftune's schedules end at 0, not at a minimum"),
    "inverse_sqrt": ("constant", "preftune has no inverse square root decay"),
    "warmup_stable_decay": ("constant", "without the decay at the end"),
    "reduce_lr_on_plateau": ("constant", "preftune does not react to the held-out loss"),
    "one_cycle": ("cosine", "without the second phase"),
    "rex": ("linear", "preftune has no REX schedule"),
}
NOT_ADAMW = "preftune has adamw and rmsprop; it uses adamw, which may need another learning rate"


def batch(draft: Draft, per_device: str, accumulation: str, processes: int | None, path: str = "batch.pairs") -> None:
    """Set the pairs per optimizer step: batch per device x accumulation x processes."""
    size, steps = draft.number(per_device), draft.number(accumulation)
    if size is None or steps is None:
        return
    total = int(size * steps * (processes or 1))
    note = f"{size:g} per device x {steps:g} accumulated x {processes or 1} " + (
        "process" if (processes or 1) == 1 else "processes"
    )
    if processes is None:
        note += "; with N processes, pass --processes N"
    draft.put(path, max(1, total), per_device, accumulation, note=note)


def optimizer(draft: Draft, *, schedule: str = "lr_scheduler_type", name: str = "optim") -> None:
    """Set learning rate, schedule, warm-up, weight decay and gradient clipping."""
    rate = draft.number("learning_rate")
    if rate is not None:
        draft.put("optim.lr", float(rate), "learning_rate")
    kind = str(draft.get(schedule) or "linear").lower().removeprefix("schedulertype.")
    nearest, note = SCHEDULES.get(kind, ("linear", f"preftune has no schedule {kind!r}"))
    draft.put("optim.schedule", nearest, schedule, note=f"differs: {note}" if note else "")
    arguments = draft.values.get("lr_scheduler_kwargs")
    if arguments and truth(arguments):
        draft.lose("lr_scheduler_kwargs", note="preftune's schedules have no parameters")
    warmup(draft, kind)
    decay, norm = draft.number("weight_decay"), draft.number("max_grad_norm")
    if decay is not None:
        draft.put("optim.weight_decay", float(decay), "weight_decay")
    if norm:
        draft.put("optim.max_grad_norm", float(norm), "max_grad_norm")
    elif norm == 0:
        draft.put("optim.max_grad_norm", 1e9, "max_grad_norm", note="0 turns clipping off there")
    _optimizer_name(draft, name)
    for key, default in (("adam_beta1", 0.9), ("adam_beta2", 0.999), ("adam_epsilon", 1e-8)):
        value = as_number(draft.get(key))
        if value is not None and not math.isclose(value, default):
            if draft.has(key):
                draft.lose(key, note=f"preftune's AdamW has {default:g}")
            else:
                note = f"{draft.tool} has {key} {value:g} by default, preftune's AdamW {default:g}"
                draft.objective.append(f"note: {note}")
        draft.keep(key, note="as in preftune")


def warmup(draft: Draft, kind: str) -> None:
    """Set the warm-up. In transformers, warmup_steps above 0 overrides warmup_ratio."""
    if kind == "constant":
        draft.put("optim.warmup", 0, "lr_scheduler_type", note="the schedule `constant` of transformers has no warm-up")
        draft.lose("warmup_ratio", "warmup_steps", note="it has no effect with this schedule there either")
        return
    steps, share = draft.number("warmup_steps"), draft.number("warmup_ratio")
    key, value = ("warmup_steps", steps) if steps else ("warmup_ratio", share)
    if not value:
        draft.put("optim.warmup", 0, "warmup_steps", "warmup_ratio")
        return
    if key == "warmup_ratio" and value >= 1:
        draft.lose(key, note="a share of 1 is not possible; set optim.warmup to a number of steps")
        return
    note = "a share of all steps" if value < 1 else "steps"
    draft.put("optim.warmup", value if value < 1 else int(value), key, note=note)
    draft.keep("warmup_ratio", note="overridden by warmup_steps there too")
    draft.keep("warmup_steps", note="0: warmup_ratio counts")


def _optimizer_name(draft: Draft, key: str) -> None:
    value = str(draft.get(key) or "adamw_torch").lower()
    if "rmsprop" in value:
        draft.put("optim.name", "rmsprop", key)
    elif value in ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw", "adam", "adamw_torch_xla"):
        draft.put("optim.name", "adamw", key) if draft.has(key) else None
    elif value.startswith(("adamw", "paged_adamw")):
        note = "with fp32 moments instead of 8-bit ones; optim.moments=bf16 takes half of that memory"
        draft.put("optim.name", "adamw", key, note=note if "8bit" in value or "bnb" in value else "without paging")
    else:
        draft.put("optim.name", "adamw", key, note=f"differs: {NOT_ADAMW}")


def length(draft: Draft, epochs: str = "num_train_epochs") -> None:
    """Set epochs and max_steps. In transformers, max_steps above 0 overrides the number of epochs."""
    steps, passes = draft.number("max_steps"), draft.number(epochs)
    if steps and steps > 0:
        draft.put("train.max_steps", int(steps), "max_steps")
        draft.put("train.epochs", 1000, "max_steps", note=f"{draft.tool} repeats the data until max_steps is reached")
        draft.keep(epochs, note="overridden by max_steps there too")
        return
    draft.keep("max_steps", note="not limited")
    if passes is None:
        return
    whole = max(1, math.ceil(passes))
    note = "" if whole == passes else f"differs: epochs are whole numbers; for {passes:g} epochs, set train.max_steps"
    draft.put("train.epochs", whole, epochs, note=note)


def saving(draft: Draft) -> None:
    """Set when to save, evaluate and log."""
    strategy = str(draft.get("save_strategy")).lower()
    steps = draft.number("save_steps")
    if strategy == "steps" and steps and steps >= 1:
        draft.put("train.save_every", int(steps), "save_steps", "save_strategy")
    elif strategy in ("no", "false", "none"):
        draft.keep("save_strategy", "save_steps", note="preftune chooses when to save")
    else:
        draft.lose("save_strategy", "save_steps", note="set train.save_every to a number of steps")
    every = draft.number("logging_steps")
    if every is not None and every >= 1:
        draft.put("train.log_every", int(every), "logging_steps")
    else:
        draft.lose("logging_steps", note="set train.log_every to a number of steps")
    draft.put("train.seed", int(draft.number("seed") or 0), "seed", note="another order of the data than there")


def evaluating(draft: Draft, source: Any, *keys: str) -> None:
    """Set held-out data and how often to evaluate. `source` is what preftune reads, or None."""
    strategy_key = "evaluation_strategy" if draft.has("evaluation_strategy") else "eval_strategy"
    strategy = str(draft.get(strategy_key)).lower()
    steps = draft.number("eval_steps")
    if strategy in ("no", "false", "none"):
        reason = f"{draft.tool} does not evaluate, because eval_strategy is `no`"
        draft.keep(*keys, "eval_steps", strategy_key, "eval_strategy", note=reason)
        return
    if source is None:
        note = "there are no held-out data; set data.eval to a file or to a share such as 0.05"
        draft.lose(*keys, "eval_steps", strategy_key, note=note)
        return
    draft.put("data.eval", source, *keys)
    if strategy == "steps" and (steps is None or steps >= 1):
        every = steps or draft.number("logging_steps")
        if every:
            draft.put("train.eval_every", int(every), "eval_steps", strategy_key)
            return
    note = "preftune evaluates before the first and after the last step; set train.eval_every to a number of steps"
    draft.lose("eval_steps", strategy_key, note=note)


def trackers(draft: Draft, key: str = "report_to", name: str = "run_name") -> None:
    """Set the trackers."""
    names = [str(item).lower() for item in as_list(draft.values.get(key))]
    wanted = [item for item in names if item in TRACKERS]
    other = [item for item in names if item not in (*TRACKERS, "none", "null", "false")]
    if names:
        missing = f"without {', '.join(other)}, which preftune does not write to" if other else ""
        draft.put("track", wanted, key, note=missing)
    if wanted and draft.has(name):
        draft.lose(name, note=f"set WANDB_NAME={draft.values[name]} in the environment (wandb), or name the run folder")
    draft.keep(name, note="preftune names a run after its folder")


def output(draft: Draft, key: str = "output_dir") -> None:
    """Set the run folder. A folder that is not empty gets a suffix, because preftune writes to new folders only."""
    value = draft.get(key)
    if not value:
        return
    folder = Path(str(value))
    in_use = folder.is_dir() and any(folder.iterdir()) and not (folder / "manifest.json").is_file()
    path = f"{str(folder).rstrip('/')}-preftune" if in_use else str(folder)
    draft.put("out", path, key, note=f"{folder} is not empty" if in_use else "")


def precision(draft: Draft, *, weights: str = "", amp_default: bool = False) -> None:
    """Set the precision from bf16, fp16 and the dtype of the weights."""
    bf16, fp16 = draft.get("bf16"), draft.on("fp16")
    dtype = str(draft.get(weights)).lower().removeprefix("torch.") if weights and draft.get(weights) else ""
    keys = [key for key in ("bf16", "fp16", weights) if key and draft.has(key)]
    if str(bf16).lower() == "auto":
        draft.put("model.dtype", "auto", *keys)
    elif (bf16 is None and amp_default and not fp16) or truth(bf16) or (not amp_default and dtype == "bfloat16"):
        note = "with fp32 master weights"
        draft.put("model.dtype", "bf16", *(keys or ["bf16"]), note=note)
    elif fp16 or dtype == "float16":
        note = "differs: preftune has no fp16, whose gradients overflow; auto is bf16 where the device has it"
        draft.put("model.dtype", "auto", *keys, note=note)
    elif keys:
        draft.put("model.dtype", "fp32" if dtype in ("float32", "") else "auto", *keys)
    for key in ("bf16", "fp16", weights):
        draft.keep(key, note="see model.dtype")


def memory(draft: Draft) -> None:
    """Set gradient checkpointing and torch.compile."""
    if draft.has("gradient_checkpointing"):
        draft.put("model.gradient_checkpointing", draft.on("gradient_checkpointing"), "gradient_checkpointing")
    if draft.on("torch_compile"):
        draft.put("model.compile", True, "torch_compile")


def adapter(
    draft: Draft, rank: str, alpha: str, targets: Any, *target_keys: str, rslora: str = "use_rslora", note: str = ""
) -> None:
    """Set rank, alpha, targets and rslora of the section `lora`."""
    r, a = draft.number(rank), draft.number(alpha)
    if r is None or r < 1 or a is None:
        return
    draft.put("lora.rank", int(r), rank)
    draft.put("lora.alpha", float(a), alpha)
    if draft.on(rslora):
        draft.put("lora.rslora", True, rslora)
    draft.put("lora.targets", targets, *target_keys, note=note)


def hub_name(path: str, config: Any = None, split: Any = None, revision: Any = None) -> str:
    """Return a Hub data set, folder or file as preftune writes it: name[:config][:split]."""
    if Path(path).suffix or path.startswith((".", "/")):
        return path
    parts = [path, *([str(config)] if config else []), *([str(split)] if split else [])]
    return ":".join(parts) + (f"@{revision}" if revision else "")


def mapping(draft: Draft, key: str) -> Mapping[str, Any]:
    """Return the mapping at a key, which may be JSON text; empty if the key is not set."""
    value = draft.values.get(key)
    return as_mapping(value, key) if truth(value) else {}
