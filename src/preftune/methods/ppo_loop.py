"""The training loop of PPO: each step samples responses with the policy, then updates the policy on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from preftune import stop
from preftune.config.sampling import PPOConfig, PPOParameters
from preftune.data.layout import Budget, micro_batches
from preftune.data.prompts import Prompt, Prompts
from preftune.data.steps import Step, permutation
from preftune.errors import ConfigError, PreftuneError
from preftune.formulas import step_seed
from preftune.lifecycle.run_samples import save_samples
from preftune.lifecycle.task import halved
from preftune.losses import ppo
from preftune.methods.rollouts import Experience, PPOModels, collect, reward_samples, sample_responses
from preftune.model.logprobs import Scorer
from preftune.model.reference import Live
from preftune.ranks import group
from preftune.ranks.work import by_rank
from preftune.scoring import Floats, response_logps
from preftune.train import checkpoint
from preftune.train.loop import stopped, update
from preftune.train.metrics import Tally
from preftune.train.optim import Weights, lr_at, warmup_steps
from preftune.train.run import Run
from preftune.types import Batch, LossOutput, TokenGroup


@dataclass(frozen=True, slots=True)
class PPOTask:
    """The clipped losses on the experience of one step; train.loop.Losses documents the methods."""

    models: PPOModels
    experience: Experience
    settings: PPOParameters
    budget: Budget
    joint: ClassVar[bool] = False

    def micro_batches(self, groups: Sequence[TokenGroup]) -> list[Batch]:
        return [batch.to(self.models.policy.device) for batch in micro_batches(groups, self.budget)]

    def halved(self, batches: Sequence[Batch]) -> PPOTask:
        return replace(self, budget=halved(self.budget, batches))

    def count(self, batch: Batch) -> Tensor:
        return batch.length_S.sum().float()

    def loss_of(self, batch: Batch) -> LossOutput:
        """Return  policy loss + value_coef * value loss (+ kl_weight * KL for k2 and k3),  summed over tokens."""
        old, settings = self.experience.tokens_of(batch), self.settings
        now, value_N = self.models.policy_and_values(batch)
        policy, clipped = ppo.policy_loss(now.token_N, old.logp, old.advantage, settings.clip)
        value, value_clipped = ppo.value_loss(value_N, old.value, old.returns, settings.value_clip)
        ratio = torch.exp(now.token_N.detach() - old.logp)
        metrics = {
            "loss/policy": policy.detach(),
            "loss/value": value.detach(),
            "policy/ratio": ratio,
            "policy/approx_kl": ppo.kl_estimate(old.logp, now.token_N.detach(), "k3"),
            "policy/clip_fraction": clipped.float(),
            "value/clip_fraction": value_clipped.float(),
        }
        count, total = self.count(batch), policy.sum() + settings.value_coef * value.sum()
        if settings.kl_estimator != "k1":
            kl = ppo.kl_loss(now.token_N, old.logp, old.reference, settings.kl_estimator)
            total = total + self.experience.kl_weight * kl.sum()
            metrics["loss/kl"] = self.experience.kl_weight * kl.detach()
        return LossOutput(total, count, {name: (values.sum(), count) for name, values in metrics.items()})


def optimise(
    models: PPOModels,
    prompts: Prompts,
    steps: Sequence[Step],
    config: PPOConfig,
    budget: Budget,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    run: Run,
) -> Iterator[tuple[int, Budget]]:
    """Do the steps `steps[run.start:]`. Yield the step number and the budget whenever an evaluation is due.

    Raises Stopped after a step if the user requested it, and StopRequest while responses are sampled and rewarded;
    `run.reached` was then called with the last completed step.
    """
    total, optim = len(steps), config.optim
    coefficient = run.loop_state.get("kl_coef", config.ppo.kl_coef)
    if run.start == 0 or run.evaluation_due:
        run.reached(run.start, Tally(), budget.tokens, evaluated=False)
        yield run.start, budget
    run.reached(run.start, Tally(), budget.tokens, evaluated=True)
    for step in steps[run.start :]:
        began, planned = perf_counter(), run.planned(step.number, total)
        lr = lr_at(step.number, planned, optim.lr, optim.schedule, warmup_steps(optim.warmup, planned))
        run.loop_state = {"kl_coef": coefficient}
        with save_on_error(run, step.number - 1, budget), stop.interruptible():
            batch = [prompts.train[i] for i in step.members]
            seed = step_seed(config.train.seed, step.number)
            experience = collect(models, batch, config.rollout, config.ppo, coefficient, budget, seed, step.number)
        task, tally = PPOTask(models, experience, config.ppo, budget), Tally()
        with save_on_error(run, step.number - 1, budget, weights_changed=True), stop.deferred():
            for members in minibatches(len(batch), config.ppo, config.train.seed, step.number):
                groups = [experience.groups[i] for i in members]
                task, metrics, norm = update(
                    task, groups, weights, optimizer, lr, optim.max_grad_norm, step.number, run
                )
                tally.merge(metrics)
                if group.first():  # every rank has the norm of the sum
                    tally.add({"grad_norm": (torch.tensor(norm), torch.tensor(1.0))})
        budget = task.budget
        length_S = [len(ids) for group in experience.groups for ids in group.response_ids]
        if config.ppo.kl_target is not None:
            kl, horizon = experience.metrics["objective/kl"], config.ppo.kl_horizon
            coefficient = ppo.adapt_kl_coefficient(coefficient, kl, config.ppo.kl_target, len(length_S), horizon)
        run.loop_state = {"kl_coef": coefficient}
        seconds = perf_counter() - began
        rates = {"responses_per_s": len(length_S) / seconds, "tokens_per_s": sum(length_S) / seconds}
        if step.number % config.train.log_every == 0 or step.number in (1, total):
            run.log_train(
                step.number,
                {**tally.over_ranks().means(), **experience.metrics, "lr": lr, "epoch": step.epoch, **rates},
            )
        if step.number == total or (config.train.eval_every and step.number % config.train.eval_every == 0):
            run.reached(step.number, Tally(), budget.tokens, evaluated=False)
            yield step.number, budget
        run.reached(step.number, Tally(), budget.tokens, evaluated=True)
        if run.stop_requested() and step.number < total:
            run.save(step.number, Tally(), budget.tokens)
            raise stopped(step.number, total)
        run.save_if_due(step.number, Tally(), budget.tokens)


@contextmanager
def save_on_error(
    run: Run, step: int, budget: Budget, *, weights_changed: bool = False, evaluated: bool = True
) -> Iterator[None]:
    """If an error occurs inside this context, save a checkpoint of `step`, the last completed step.

    `evaluated`: the evaluation of that step is complete, or none was due.

    `weights_changed`: updates of the next step have begun, so the weights are not exactly those after `step`. They are
    saved only if the run has no checkpoint at all.
    """
    try:
        yield
    except PreftuneError as error:
        if group.world() > 1 and isinstance(error, ConfigError):  # of one rank: the others cannot save with it
            raise
        if group.world() == 1:  # else the error may be that of one rank
            run.settle()
        saved = checkpoint.saved(run.folder / "checkpoints")
        is_saved = bool(saved) and (weights_changed or saved[-1].name == checkpoint.name_of(step))
        if step > 0 and not is_saved:
            assert run.weights is not None
            run.weights.clear_gradients()
            with suppress(PreftuneError):  # report the first error
                run.save(step, Tally(), budget.tokens, evaluated=evaluated)
        raise


def minibatches(groups: int, settings: PPOParameters, seed: int, step: int) -> Iterator[list[int]]:
    """Yield the group indices of each update. Every epoch uses all groups once, in a new order."""
    for epoch in range(settings.epochs):
        order = permutation(groups, seed, step * settings.epochs + epoch)
        for part in np.array_split(order, min(settings.minibatches, groups)):
            yield [int(i) for i in part]


@torch.no_grad()
def evaluate(models: PPOModels, held_out: Sequence[Prompt], config: PPOConfig, step: int, run: Run) -> dict[str, float]:
    """Return mean reward and KL of new responses to the held-out prompts, sampled with the same seed every time.

    The responses are saved to the run folder.
    """
    if not held_out:
        return {}
    samples = sample_responses(models, held_out, config.rollout, step_seed(config.train.seed, 0))
    score_S, ended_S = reward_samples(models, held_out, samples, config.rollout, f"evaluation at step {step}")
    if group.first():
        with run.optional("samples"):
            save_samples(run.folder, step, models.tokenizer, samples)
    groups = [sampled.group for sampled in samples]
    policy, reference = (
        np.array(by_rank(groups, lambda g: g.tokens, partial(_rows, model)))
        for model in (models.policy, models.reference)
    )
    return {
        "objective/score": float(score_S.mean()),
        "objective/kl": float((policy - reference).mean()),
        "responses/ended": float(ended_S.float().mean()),
    }


def _rows(model: Scorer | Live, groups: Sequence[TokenGroup]) -> list[Floats]:
    return list(response_logps(model, groups))
