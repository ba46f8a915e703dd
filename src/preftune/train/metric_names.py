"""Names of metrics: of each source of a mixture, and in other programs, so that their dashboards show runs, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: preftune's name of a metric, and OpenRLHF's, in training and in evaluations (trainer/dpo_trainer.py, 0.11).
OPENRLHF = {
    "train": {"rewards/accuracies": "acc", "rewards/chosen": "chosen_reward", "rewards/rejected": "reject_reward"},
    "eval": {"loss": "eval_loss", "rewards/accuracies": "acc_mean"},
}
#: The code of the DPO paper (eric-mitchell/direct-preference-optimization, trainers.py). {} is train or eval.
ORIGINAL = {
    "loss": "loss/{}", "rewards/chosen": "rewards_{}/chosen", "rewards/rejected": "rewards_{}/rejected",
    "rewards/accuracies": "rewards_{}/accuracies", "rewards/margins": "rewards_{}/margins",
    "logps/chosen": "logps_{}/chosen", "logps/rejected": "logps_{}/rejected", "pairs_per_s": "examples_per_second",
}  # fmt: skip


def renamed(
    programs: Sequence[str], tracker: str, split: str, step: int, metrics: Mapping[str, float]
) -> dict[str, float]:
    """Return `metrics` of a split under the names that each of `programs` gives them in a tracker."""
    makers = {"trl": _trl, "openrlhf": _openrlhf, "original": _original}
    return {
        name: value for program in programs for name, value in makers[program](tracker, split, step, metrics).items()
    }


def _trl(tracker: str, split: str, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the names of transformers' callbacks (integrations/integration_utils.py, `rewrite_logs`).

    The callback of MLflow logs the Trainer's own names, without a prefix for training.
    """
    named = {("learning_rate" if name == "lr" else name): value for name, value in metrics.items()}
    if tracker == "mlflow":
        return {name if split == "train" else f"eval_{name}": value for name, value in named.items()}
    position = {"train/global_step": float(step)} if tracker == "wandb" else {}
    return {f"{split}/{name}": value for name, value in named.items()} | position


def _openrlhf(tracker: str, split: str, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    position = {f"{split}/global_step": float(step)} if tracker == "wandb" else {}
    names = OPENRLHF[split]
    return {f"{split}/{names[name]}": value for name, value in metrics.items() if name in names} | position


def _original(_tracker: str, split: str, _step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """`examples_per_second` and `grad_norm` have no split there."""
    names = ORIGINAL | ({"grad_norm": "grad_norm"} if split == "train" else {})
    return {names[name].format(split): value for name, value in metrics.items() if name in names}


SOURCE = "source/"


def source_metric(source: str, metric: str) -> str:
    """Return the name of the metric of a source of a mixture: source/NAME/METRIC."""
    return f"{SOURCE}{source}/{metric}"


def by_source(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the metrics of each source, by source and by the names that they have for all data."""
    result: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if name.startswith(SOURCE):
            source, _, metric = name.removeprefix(SOURCE).partition("/")
            result.setdefault(source, {})[metric] = value
    return result
