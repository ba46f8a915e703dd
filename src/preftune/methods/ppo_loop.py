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
from preftune.errors import PreftuneError
from preftune.formulas import step_seed
from preftune.lifecycle.task import halved
from preftune.losses import ppo
from preftune.methods.rollouts import Actors, Experience, collect, draw, scores
from preftune.scoring import response_logps
from preftune.train.loop import stopped, update
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

    def micro_batches(self, groups: Sequence[TokenGroup]) -> list[Batch]:
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
    steps: Sequence[Step],
    config: PPOConfig,
    budget: Budget,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    run: Run,
) -> Iterator[tuple[int, Budget]]:
    """Do the steps `steps[run.start:]`. Yield the step number and the budget whenever an evaluation is due.

    An error leaves a checkpoint of the last whole step behind.
    """
    total, warmup = len(steps), warmup_steps(config.optim.warmup, len(steps))
    coefficient = run.facts.get("kl_coef", config.ppo.kl_coef)
    if run.start == 0:
        yield 0, budget
    for step in steps[run.start :]:
        began, lr = perf_counter(), lr_at(step.number, total, config.optim.lr, config.optim.schedule, warmup)
        run.facts = {"kl_coef": coefficient}
        with saved_on_error(run, step.number - 1, budget) as guard:
            batch = [prompts.train[i] for i in step.members]
            seed = step_seed(config.train.seed, step.number)
            experience = collect(actors, batch, config.rollout, config.ppo, coefficient, budget, seed, step.number)
            task, tally = PPOTask(actors, experience, config.ppo, budget), Tally()
            guard.weights_changed = True
            for members in minibatches(len(batch), config.ppo, config.train.seed, step.number):
                groups = [experience.groups[i] for i in members]
                task, metrics, norm = update(
                    task, groups, weights, optimizer, lr, config.optim.max_grad_norm, step.number, run
                )
                tally.merge(metrics)
                tally.add({"grad_norm": (torch.tensor(norm), torch.tensor(1.0))})
        budget = task.budget
        length_S = [len(ids) for group in experience.groups for ids in group.response_ids]
        if config.ppo.kl_target is not None:
            kl, horizon = experience.metrics["objective/kl"], config.ppo.kl_horizon
            coefficient = ppo.steered(coefficient, kl, config.ppo.kl_target, len(length_S), horizon)
        run.facts = {"kl_coef": coefficient}
        seconds = perf_counter() - began
        rates = {"responses_per_s": len(length_S) / seconds, "tokens_per_s": sum(length_S) / seconds}
        if step.number % config.train.log_every == 0 or step.number in (1, total):
            run.train(step.number, {**tally.means(), **experience.metrics, "lr": lr, "epoch": step.epoch, **rates})
        stop = run.stop_requested() and step.number < total
        if step.number == total or (config.train.eval_every and step.number % config.train.eval_every == 0):
            yield step.number, budget
        if stop or (config.train.save_every and step.number % config.train.save_every == 0):
            run.save(step.number, Tally(), budget.tokens)
        if stop:
            raise stopped(step.number, total)


class saved_on_error:
    """A context in which an error leaves a checkpoint of the last whole step behind, unless there is one.

    Once `weights_changed` is set, updates of the next step have begun. Their weights belong to no whole step, so they
    are only saved if there is no checkpoint at all.
    """

    def __init__(self, run: Run, step: int, budget: Budget) -> None:
        self.run, self.step, self.tokens, self.weights_changed = run, step, budget.tokens, False

    def __enter__(self) -> saved_on_error:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: Any) -> None:
        if not isinstance(error, PreftuneError) or self.step == 0:
            return
        saved = sorted((self.run.folder / "checkpoints").glob("step-????????"))
        if saved and (self.weights_changed or saved[-1].name == f"step-{self.step:08d}"):
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
    drawn = draw(actors, held_out, config.rollout, step_seed(config.train.seed, 0))
    score_S, ended_S = scores(actors, held_out, drawn, config.rollout, f"evaluation at step {step}")
    groups = [sampled.group for sampled in drawn]
    policy = response_logps(actors.policy, groups)
    reference = response_logps(actors.reference, groups)
    return {
        "objective/score": float(score_S.mean()),
        "objective/kl": float((policy - reference).mean()),
        "responses/ended": float(ended_S.float().mean()),
    }
