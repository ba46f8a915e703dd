"""PPO, the pipeline that DPO replaces: policy, reference, reward and value models, brought together for the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from preftune.chat.render import Renderer
from preftune.config.sampling import PPOConfig
from preftune.data.groups import require_vocabulary
from preftune.data.order import Step, training_steps
from preftune.data.prompts import Prompt, Prompts, encode_prompts
from preftune.errors import DataError
from preftune.lifecycle import estimate
from preftune.lifecycle.data import TextData, report_accounts
from preftune.lifecycle.finish import finish_run, running
from preftune.lifecycle.guard import before_first_step
from preftune.lifecycle.packing_probe import admit, state_values
from preftune.lifecycle.plan import print_plan
from preftune.lifecycle.policy import Policy, device_of, require_positions, require_same_vocabulary
from preftune.lifecycle.saved import model_fingerprint, note_reward, reward_models_fingerprint, warn_if_reward_changed
from preftune.lifecycle.start import attach_optimizer, open_run, start_run
from preftune.methods.ppo_loop import evaluate, optimise, saved_on_error
from preftune.methods.rollouts import Actors, Critic
from preftune.model import load
from preftune.model.adapter import matched
from preftune.model.logprobs import model_size
from preftune.model.reference import AdapterOff, Frozen
from preftune.model.scalar import load_scalar, scalar_scorer, scalar_twin
from preftune.rewards.open import open_reward
from preftune.rewards.reward import Reward
from preftune.train.display import Display
from preftune.train.optim import Weights
from preftune.types import TokenGroup


def run(
    config: PPOConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    reward: Reward | None = None,
    display: Display | None = None,
    dry_run: bool = False,
) -> Path:
    """Train and return the folder of the tuned model. Model, tokenizer and reward may be given in memory."""
    display = display or Display()
    fingerprints = {"the reward": reward_models_fingerprint(None if reward else config.reward)}
    if config.value.path:
        fingerprints["the first value model"] = model_fingerprint(config.value.path)
    with before_first_step(model):
        start = start_run(
            config, model=model, tokenizer=tokenizer, display=display, dry_run=dry_run, fingerprints=fingerprints
        )
        if start.is_finished:
            return start.final
        reward_function = reward or open_reward(config.reward, "reward", device=device_of(start.model))
        renderer = start.renderer()
        prompts = encoded(config, start.text, renderer, display)
        policy = start.policy(renderer)
        require_room(policy, [*prompts.train, *prompts.held_out], config, start.source)
        train, size = config.train, config.rollout.prompts
        steps = list(training_steps([1] * len(prompts.train), size, train.seed, train.epochs, train.max_steps))
        critic = make_critic(config, start.source, policy, in_memory=model is not None)
        memory = footprint(config, policy, critic, prompts.train)
        policy.budget = replace(policy.budget, tokens=slots(config, policy, memory))
        describe(config, policy, critic, prompts, steps, memory, display)
        if dry_run:
            return print_plan(config, [], display)
        run = open_run(start, policy)
        if not reward:
            warn_if_reward_changed(run, config.reward)
            note_reward(run, config.reward)
        if run.tokens:  # a larger size would change last digits, or run out of memory again
            policy.budget = replace(policy.budget, tokens=min(policy.budget.tokens, run.tokens))
        reference = AdapterOff.of(policy.scorer) if config.lora else Frozen.copy_of(policy.model)
        actors = Actors(policy.scorer, reference, reward_function, critic, policy.tokenizer)
        weights = Weights(nn.ModuleDict({"policy": policy.model, "value": critic.module}), precise(policy.precise))
        optimizer = attach_optimizer(run, config, weights, len(steps))
    with running(run, policy, "ppo", len(steps)):
        for step, budget in optimise(actors, prompts, steps, config, policy.budget, weights, optimizer, run):
            with saved_on_error(run, step, budget):
                metrics = evaluate(actors, prompts.held_out, config, step)
            run.evaluation(step, metrics)
    return finish_run(run, policy, len(steps))


def encoded(config: PPOConfig, asked: TextData, renderer: Renderer, display: Display) -> Prompts:
    """Token ids of the prompts; the account of every row is said."""
    longest = config.data.max_prompt_length
    prompts = encode_prompts(asked.train, renderer, longest, asked.accounts[0])
    held_out = encode_prompts(asked.held_out, renderer, longest, asked.accounts[-1])
    report_accounts(asked, display)
    for account in asked.accounts:
        account.check(config.data.max_dropped)
    if not prompts:
        raise DataError("no prompt is left for training", where=asked.accounts[0].source)
    return Prompts(prompts, held_out)


def require_room(policy: Policy, prompts: Sequence[Prompt], config: PPOConfig, source: load.Source) -> None:
    """Raises where prompts and model do not fit each other, or a response would leave the model's positions."""
    groups = imagined(prompts, config)
    require_vocabulary(groups, policy.model.get_input_embeddings().weight.shape[0], source.base)
    require_positions(policy.model, groups, "rollout.max_new_tokens")


def imagined(prompts: Sequence[Prompt], config: PPOConfig) -> list[TokenGroup]:
    """The prompts with responses as long as they can be."""
    response = np.zeros(config.rollout.max_new_tokens, dtype=np.int32)
    return [TokenGroup(p.ids, (response,) * config.rollout.responses, origin=p.origin) for p in prompts]


def make_critic(config: PPOConfig, source: load.Source, policy: Policy, in_memory: bool) -> Critic:
    """The value model: a network that starts as `value.path` or as the policy's body, or a head that starts at 0."""
    if config.value.kind == "head":
        width = policy.model.config.get_text_config().hidden_size
        head = nn.Linear(width, 1).to(policy.scorer.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return Critic(None, head)
    if config.value.path:
        source = load.locate(config.value.path, "value.path")
        require_same_vocabulary(policy.tokenizer, load.load_tokenizer(source), config.value.path, "value model")
    if (in_memory or source.adapter) and not config.value.path:
        network = scalar_twin(policy.model)
    else:
        network = load_scalar(source, policy.model.dtype, new_head=True)
    network.config.use_cache = False
    network.requires_grad_(True)
    if config.lora:
        network = load.add_lora(network, config.lora.rank, config.lora.alpha, body_targets(network, config), "SEQ_CLS")
    network.to(policy.scorer.device)
    scorer = scalar_scorer(network)
    if policy.budget.layout != "rows":
        admit(scorer, policy.budget.layout, state_values)
    if config.model.gradient_checkpointing:
        load.checkpoint_activations(network)
    return Critic(scorer, None)


def body_targets(network: Any, config: PPOConfig) -> str | list[str]:
    """`lora.targets` without names that only the policy has, such as its head; that each matches there is checked."""
    assert config.lora
    targets = config.lora.targets
    return targets if isinstance(targets, str) else [name for name in targets if matched(network, name, targets)]


def slots(config: PPOConfig, policy: Policy, found: estimate.Footprint) -> int:
    """`batch.tokens`; auto is what fits beside four models."""
    if config.batch.tokens != "auto":
        return config.batch.tokens
    return estimate.choose_tokens(found, policy.scorer.device, policy.model.config.get_text_config().hidden_size)


def footprint(config: PPOConfig, policy: Policy, critic: Critic, prompts: Sequence[Prompt]) -> estimate.Footprint:
    """That of the policy, with a frozen reference and the value model's gradients, moments and activations."""
    groups = imagined(prompts[:64], config)
    found = estimate.footprint(policy.scorer, config, not config.lora, groups, policy.budget.layout)
    trained = sum(p.numel() for p in critic.module.parameters() if p.requires_grad)
    moments = 2 if config.optim.name == "adamw" else 1
    fixed = {**found.fixed, "value model": 4 * (1 + moments) * trained}
    return replace(found, fixed=fixed, per_slot=found.per_slot * (2 if critic.network else 1))


def describe(
    config: PPOConfig,
    policy: Policy,
    critic: Critic,
    prompts: Prompts,
    steps: Sequence[Step],
    found: estimate.Footprint,
    display: Display,
) -> None:
    """What is about to happen, in a few lines."""
    everything, trained = model_size(policy.model)
    dtype = str(policy.model.dtype).removeprefix("torch.")
    display.say(
        f"policy: {everything:,} parameters, {trained:,} trained; value: {model_size(critic.module)[0]:,}; "
        f"{dtype} on {policy.scorer.device}, layout {policy.budget.layout}"
    )
    if policy.layout_note:
        display.say(policy.layout_note)
    rollout, tokens = config.rollout, policy.budget.tokens
    sampled = sum(len(step.members) for step in steps) * rollout.responses
    display.say(
        f"data: {len(prompts.train)} prompts, {len(prompts.held_out)} held out; {len(steps)} steps, "
        f"{sampled:,} responses of up to {rollout.max_new_tokens} tokens; "
        f"{config.ppo.epochs * min(config.ppo.minibatches, len(steps[0].members))} updates a step"
    )
    peak = found.peak(tokens, tokens)
    display.say(f"memory: about {estimate.gb(peak)} at the peak; micro-batches of up to {tokens:,} token slots")


def precise(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The policy's weights with more digits, under the names that they have beside the value model's."""
    return {f"policy.{name}": tensor for name, tensor in weights.items()}
