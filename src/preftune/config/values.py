"""Functions that check and translate values of the config. `schema` says for which keys."""

from __future__ import annotations

import math
from typing import Any

RESERVED = {
    *("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
    *("sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now", "raise_exception", "preftune_dates"),
}
"""Arguments of transformers' apply_chat_template that preftune sets itself."""


def check_template_arguments(value: dict[str, Any]) -> dict[str, Any]:
    """Check `data.chat_template_kwargs`."""
    reserved = sorted(RESERVED & set(value))
    if reserved:
        raise ValueError(f"{reserved[0]} is set by preftune; remove it")
    return value


def positive(value: int | str | None) -> int | str | None:
    """Check a number of steps or tokens that can also be a word or null."""
    if isinstance(value, int) and value < 1:
        raise ValueError("must be at least 1")
    return value


SAME_DTYPE = {"float32": "fp32", "float": "fp32", "bfloat16": "bf16"}


def read_dtype(value: Any) -> Any:
    """Translate torch's names of precisions."""
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name in ("float16", "fp16", "half"):
        raise ValueError("float16 is not supported, because its gradients overflow; write bf16 or fp32")
    return SAME_DTYPE.get(name, value) if isinstance(name, str) else value


def read_loss(value: Any) -> Any:
    """Turn the name of a loss into a section, and the name `dpo` into `sigmoid`."""
    terms = value if isinstance(value, list) else [value]
    terms = [{"name": term} if isinstance(term, str) else term for term in terms]
    if not all(isinstance(term, dict) for term in terms):
        raise ValueError("must be a name (ipo), a section ({name: ipo, beta: 0.1}), or a list of these")
    terms = [{**term, "name": "sigmoid"} if term.get("name") == "dpo" else term for term in terms]
    return terms if isinstance(value, list) else terms[0]


def check_loss(value: Any) -> Any:
    """Check names and weights of the section `loss`. Parameters are checked when the loss is resolved."""
    if isinstance(value, list) and not value:
        raise ValueError("the list needs at least one loss")
    if isinstance(value, dict) and "weight" in value:
        raise ValueError("weight applies to a list of losses; remove it, or write loss as a list")
    for term in value if isinstance(value, list) else [value]:
        if not isinstance(term.get("name", "sigmoid"), str):
            raise ValueError("name must be text")
        weight = term.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError("weight must be a number above 0")
    return value


METRIC_NAMES = {
    "accuracy": "rewards/accuracies", "accuracies": "rewards/accuracies", "margins": "rewards/margins",
    "margin": "rewards/margins", "reward": "objective/score", "score": "objective/score",
}  # fmt: skip


def read_metric(value: Any) -> Any:
    """Translate short names of metrics, and those of evaluations in transformers (eval_loss)."""
    name = value.removeprefix("eval_").removeprefix("eval/") if isinstance(value, str) else value
    return METRIC_NAMES.get(name, name) if isinstance(name, str) else name


#: Metrics of evaluations of which a lower or a higher value is better. `best` needs `direction` for others.
LOWER = ("loss", "calibration/brier", "calibration/ece", "drift/gap", "drift/kl", "drift/repetition", "drift/displaced")
HIGHER = ("rewards/accuracies", "rewards/margins", "objective/score", "drift/diversity", "drift/ended")


def lower_is_better(metric: str, direction: str) -> bool:
    """Return whether a lower value of the metric of `best` is better."""
    return metric in LOWER if direction == "auto" else direction == "lower"


def read_best(value: Any) -> Any:
    """Turn the name of a metric into a section."""
    return {"metric": value} if isinstance(value, str) else value


def check_best(best: Any, held_out: Any, eval_every: int | None) -> None:
    """Raise ValueError if a run with the section `best` has no evaluations to compare."""
    if best and held_out is None and not best.metric.startswith("drift/"):
        raise ValueError("best needs held-out data; set data.eval to a file or a share, e.g. data.eval=0.05")
    if best and eval_every is None:
        raise ValueError("best needs evaluations during training; set train.eval_every, e.g. train.eval_every=50")


CHANGES_THE_BASE = ("pissa", "olora", "loftq", "corda")
"""Initialisations of peft that take a part of the base weights into the adapter."""


def read_init(value: Any) -> Any:
    """Return the initialisation. Raises ValueError with a reason for those of peft that preftune does not use."""
    name = value.lower() if isinstance(value, str) else value
    if isinstance(name, str) and name.startswith(CHANGES_THE_BASE):
        raise ValueError(
            f"{name} moves a part of the base weights into the adapter. The model without the adapter would then no "
            "longer be the reference, and the adapter would not fit the original base model; use default or gaussian"
        )
    if name in ("eva", "lora_ga"):
        raise ValueError(
            f"{name} needs a pass over the data before training, which preftune does not make; use default"
        )
    if name in ("orthogonal", "random", False):
        shown = str(value).lower()
        raise ValueError(
            f"with {shown}, the adapter changes the outputs before the first step; use default or gaussian"
        )
    return "default" if name is True else name
