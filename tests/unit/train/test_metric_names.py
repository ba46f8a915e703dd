"""Metrics have the names of other programs, if `track_names` lists them."""

from __future__ import annotations

import pytest

from preftune.train.metric_names import renamed

METRICS = {"loss": 0.5, "rewards/chosen": 1.0, "rewards/accuracies": 0.7, "lr": 1e-6, "grad_norm": 2.0}


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard", "trackio", "mlflow"])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_names_of_trl_are_those_of_transformers(tracker: str, split: str) -> None:
    """transformers' callbacks rewrite the names of the Trainer, except that of MLflow."""
    integrations = pytest.importorskip("transformers.integrations.integration_utils")
    logged = {("learning_rate" if name == "lr" else name): value for name, value in METRICS.items()}
    logged = {(name if split == "train" else f"eval_{name}"): value for name, value in logged.items()}
    expected = logged if tracker == "mlflow" else integrations.rewrite_logs(logged)
    names = renamed(["trl"], tracker, split, 7, METRICS)
    assert names.pop("train/global_step", None) == (7 if tracker == "wandb" else None)
    assert names == expected


def test_names_of_openrlhf() -> None:
    assert renamed(["openrlhf"], "tensorboard", "train", 7, METRICS) == {"train/acc": 0.7, "train/chosen_reward": 1.0}
    expected = {"eval/eval_loss": 0.5, "eval/acc_mean": 0.7, "eval/global_step": 7}
    assert renamed(["openrlhf"], "wandb", "eval", 7, METRICS) == expected


def test_names_of_the_paper() -> None:
    expected = {"loss/eval": 0.5, "rewards_eval/chosen": 1.0, "rewards_eval/accuracies": 0.7}
    assert renamed(["original"], "wandb", "eval", 7, METRICS) == expected
    assert renamed(["original"], "wandb", "train", 7, METRICS)["grad_norm"] == 2.0


def test_several_programs() -> None:
    names = renamed(["trl", "openrlhf"], "mlflow", "train", 7, METRICS)
    assert {"loss", "learning_rate", "train/acc"} <= set(names)
