"""Reward models: a scalar head on a language model's body, fitted to judgements by the Bradley-Terry likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from preftune.config.schema import RewardConfig
from preftune.data.items import as_pairs
from preftune.lifecycle import prepare
from preftune.lifecycle.task import ResponseTask
from preftune.lifecycle.training import Method, train
from preftune.losses import Objective, Term
from preftune.losses.reward import bradley_terry
from preftune.model.memory import compute_in_parts
from preftune.model.scalar import require_padding, reward_logps, with_reward_slot
from preftune.train.display import Display
from preftune.types import TokenGroup

ENOUGH = 1000  # groups for a mean and a deviation
INPUTS = ("reward", "probability", "margin")


def run(
    config: RewardConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    display: Display | None = None,
    dry_run: bool = False,
) -> Path:
    """Train and return the folder of the reward model, which AutoModelForSequenceClassification loads.

    `model` and `tokenizer` may be given in memory: a sequence classifier with one label.
    """
    display = display or Display()
    objective = Objective((Term("bradley_terry", bradley_terry, INPUTS, "pairs", {"centre": config.centre}),))

    def task(policy: prepare.Policy, data: prepare.TokenData) -> ResponseTask:
        require_padding(policy.model, policy.tokenizer)
        return ResponseTask(
            policy.scorer, None, objective, judged(data.train), judged(data.held_out), policy.budget, reward_logps
        )

    def finish(task: ResponseTask, policy: prepare.Policy) -> None:
        scale = measured_scale(task) if config.normalise else None
        if scale and not scale["std"] > 0:
            display.say(
                f"all training responses have the reward {scale['mean']:g}: nothing was learnt, nothing is normalised"
            )
            scale = None
        policy.model.config.reward_scale = scale

    method = Method(task, opening=prepare.REWARD_MODEL, finish=finish, merged=True)
    return train(config, method, model=model, tokenizer=tokenizer, display=display, dry_run=dry_run)


def judged(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Groups with judgements, with a slot to read each reward at."""
    if not groups:
        return []
    return with_reward_slot([replace(group, labels=(), ranks=()) for group in as_pairs(groups, "reward")])


@torch.no_grad()
def measured_scale(task: ResponseTask) -> dict[str, float]:
    """Mean and standard deviation of the rewards of the training responses, or of every k-th group of many."""
    rewards = []
    for whole in task.lay(task.groups[:: 1 + len(task.groups) // ENOUGH]):
        for _, found in compute_in_parts(lambda batch: task.measure(batch.to(task.scorer.device)), whole, task.lay):
            rewards.append(found.policy.sum_S.double().cpu())
    everything = torch.cat(rewards)
    return {"mean": float(everything.mean()), "std": float(everything.std(correction=0))}
