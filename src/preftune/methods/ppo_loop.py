"""The second loop: PPO collects experience with the policy, then updates the policy on it, and again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preftune.config.sampling import PPOConfig, PPOParameters
from preftune.data.layout import Budget, micro_batches
from preftune.data.order import Step, permutation
from preftune.data.prompts import Prompt, Prompts
from preftune.errors import PreftuneError, Stopped
from preftune.lifecycle.task import halved
from preftune.losses import ppo
from preftune.measures.frontier import response_logps
from preftune.methods.rollouts import Actors, Experience, collect, draw, scores
from preftune.train.loop import update
from preftune.train.metrics import Tally
from preftune.train.optim import Weights, lr_at, warmup_steps
from preftune.train.run import Run
from preftune.types import Batch, LossOutput, TokenGroup


@dataclass(frozen=True, slots=True)
class PPOTask:
    """The clipped losses of one step's experience; see train.loop.Losses."""

    actors: Actors
    experience: Experience
    settings: PPOParameters
    budget: Budget

    @property
    def joint(self) -> bool:
        return False

    def layout(self, groups: Sequence[TokenGroup]) -> list[Batch]:
        return [batch.to(self.actors.policy.device) for batch in micro_batches(groups, self.budget)]

    def halved(self, batches: Sequence[Batch]) -> PPOTask:
        return replace(self, budget=halved(self.budget, batches))

    def count(self, batch: Batch) -> Tensor:
        return batch.length_S.sum().float()

    def loss_of(self, batch: Batch) -> LossOutput:
        """policy loss + value_coef * value loss, and the KL as a loss term for k2 and k3; summed over tokens."""
        known, settings = self.experience.of(batch), self.settings
        now, value_N = self.actors.act(batch)
        policy, clipped = ppo.policy_loss(now.token_N, known.logp, known.advantage, settings.clip)
        value, value_clipped = ppo.value_loss(value_N, known.value, known.returned, settings.value_clip)
        ratio = torch.exp(now.token_N.detach() - known.logp)
        metrics = {
            "loss/policy": policy.detach(),
            "loss/value": value.detach(),
            "policy/ratio": ratio,
            "policy/approx_kl": ppo.kl_estimate(known.logp, now.token_N.detach(), "k3"),
            "policy/clip_fraction": clipped.float(),
            "value/clip_fraction": value_clipped.float(),
        }
        count, total = self.count(batch), policy.sum() + settings.value_coef * value.sum()
        if settings.kl_estimator != "k1":
            kl = ppo.kl_loss(now.token_N, known.logp, known.reference, settings.kl_estimator)
            total = total + self.experience.kl_weight * kl.sum()
            metrics["loss/kl"] = self.experience.kl_weight * kl.detach()
        return LossOutput(
            total,
            count,
            {name: (values.sum(), count) for name, values in metrics.items()},
        )


def optimise(
    actors: Actors,
    prompts: Prompts,
    training_steps: Sequence[Step],
    config: PPOConfig,
    budget: Budget,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    run: Run,
) -> None:
    """Do the steps `plans[run.start:]`. What stops it leaves a checkpoint of the last whole step behind."""
    total, warmup = len(training_steps), warmup_steps(config.optim.warmup, len(training_steps))
    coefficient = run.facts.get("kl_coef", config.ppo.kl_coef)
    if run.start == 0:
        run.evaluation(0, evaluate(actors, prompts.held_out, config, 0))
    for plan in training_steps[run.start :]:
        began, lr = perf_counter(), lr_at(plan.number, total, config.optim.lr, config.optim.schedule, warmup)
        run.facts = {"kl_coef": coefficient}
        with _Kept(run, plan.number - 1, budget) as kept:
            asked = [prompts.train[i] for i in plan.members]
            seed = config.train.seed * 1_000_003 + plan.number
            found = collect(actors, asked, config.rollout, config.ppo, coefficient, budget, seed, plan.number)
            task, tally = PPOTask(actors, found, config.ppo, budget), Tally()
            kept.changed = True
            for members in minibatches(len(asked), config.ppo, config.train.seed, plan.number):
                some = [found.groups[i] for i in members]
                task, measured, norm = update(
                    task, some, weights, optimizer, lr, config.optim.max_grad_norm, plan.number, run
                )
                tally.merge(measured)
                tally.add({"grad_norm": (torch.tensor(norm), torch.tensor(1.0))})
        budget = task.budget
        length_S = [len(ids) for group in found.groups for ids in group.response_ids]
        if config.ppo.kl_target is not None:
            kl, horizon = found.metrics["objective/kl"], config.ppo.kl_horizon
            coefficient = ppo.adapt_kl_coefficient(coefficient, kl, config.ppo.kl_target, len(length_S), horizon)
        run.facts = {"kl_coef": coefficient}
        spent = perf_counter() - began
        rates = {"responses_per_s": len(length_S) / spent, "tokens_per_s": sum(length_S) / spent}
        if plan.number % config.train.log_every == 0 or plan.number in (1, total):
            run.train(plan.number, {**tally.means(), **found.metrics, "lr": lr, "epoch": plan.epoch, **rates})
        stop = run.stop_requested() and plan.number < total
        if plan.number == total or (config.train.eval_every and plan.number % config.train.eval_every == 0):
            with _Kept(run, plan.number, budget):
                found_held_out = evaluate(actors, prompts.held_out, config, plan.number)
            run.evaluation(plan.number, found_held_out)
        if stop or (config.train.save_every and plan.number % config.train.save_every == 0):
            run.save(plan.number, Tally(), budget.tokens)
        if stop:
            raise Stopped(
                f"stopped after step {plan.number} of {total}; everything is saved",
                fix="rerun the same command to resume",
            )


class _Kept:
    """What goes wrong leaves a checkpoint of the last whole step, unless there is one.

    `changed`: updates of the next step have begun. Their state is no step's, so it is kept only where nothing else is.
    """

    def __init__(self, run: Run, step: int, budget: Budget) -> None:
        self.run, self.step, self.tokens, self.changed = run, step, budget.tokens, False

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: Any) -> None:
        if not isinstance(error, PreftuneError) or self.step == 0:
            return
        there = sorted((self.run.folder / "checkpoints").glob("step-????????"))
        if there and (self.changed or there[-1].name == f"step-{self.step:08d}"):
            return
        assert self.run.weights is not None
        self.run.weights.clear_gradients()
        with suppress(PreftuneError):  # the first error is the one to report
            self.run.save(self.step, Tally(), self.tokens)


def minibatches(groups: int, settings: PPOParameters, seed: int, step: int) -> Iterator[list[int]]:
    """The groups of each update: every pass takes all of them in an order of its own."""
    for epoch in range(settings.epochs):
        order = permutation(groups, seed, step * settings.epochs + epoch)
        for part in np.array_split(order, min(settings.minibatches, groups)):
            yield [int(i) for i in part]


@torch.no_grad()
def evaluate(actors: Actors, held_out: Sequence[Prompt], config: PPOConfig, step: int) -> dict[str, float]:
    """Reward and sequence KL of fresh responses to the held-out prompts, always with the same random numbers."""
    if not held_out:
        return {}
    drawn = draw(actors, held_out, config.rollout, config.train.seed * 1_000_003)
    score_S, ended_S = scores(actors, held_out, drawn, config.rollout, f"evaluation at step {step}")
    groups = [sampled.group for sampled in drawn]
    policy = response_logps(actors.policy, groups)
    reference = response_logps(actors.reference, groups)
    return {
        "objective/score": float(score_S.mean()),
        "objective/kl": float((policy - reference).mean()),
        "responses/ended": float(ended_S.float().mean()),
    }
