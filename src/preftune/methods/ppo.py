"""PPO: load policy, reference, reward and value model, plan the run, and train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from preftune.chat.render import Renderer
from preftune.config.sampling import PPOConfig
from preftune.data.prompts import Prompt, Prompts, encode_prompts
from preftune.data.steps import Step, training_steps
from preftune.errors import ConfigError, DataError
from preftune.lifecycle import estimate
from preftune.lifecycle.advise import advise
from preftune.lifecycle.before_first_step import before_first_step
from preftune.lifecycle.context import within_context
from preftune.lifecycle.data import TextData, report_accounts
from preftune.lifecycle.finish import evaluating, finish_run, running, trained
from preftune.lifecycle.open_policy import (
    model_fingerprint,
    note_reward,
    reward_models_fingerprint,
    warn_if_reward_changed,
)
from preftune.lifecycle.packing_probe import choose_layout
from preftune.lifecycle.plan import print_plan, set_micro_batch_size
from preftune.lifecycle.policy import Policy, check_policy, device_of, require_same_vocabulary, variant_of
from preftune.lifecycle.start import open_run, prepare_training, start_run
from preftune.methods.ppo_loop import evaluate, optimise, save_on_error
from preftune.methods.rollouts import Critic, PPOModels
from preftune.model import load
from preftune.model.adapter import add_lora
from preftune.model.kept_adapter import has_kept
from preftune.model.logprobs import model_size
from preftune.model.quantised import quantise
from preftune.model.reference import AdapterOff, Frozen
from preftune.model.scalar import load_scalar, scalar_scorer, scalar_twin
from preftune.model.targets import matches_module
from preftune.rewards.open import open_reward
from preftune.rewards.reward import Reward
from preftune.train.display import Display
from preftune.train.optim import moment_bytes
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
    """Train, and return the folder of the tuned model. `model`, `tokenizer` and `reward` may be objects in memory."""
    display = display or Display()
    fingerprints = {"the reward": reward_models_fingerprint(None if reward else config.reward)}
    if config.value.path:
        fingerprints["the first value model"] = model_fingerprint(config.value.path)
    with before_first_step(model):
        config = within_context(config, display, model)
        start = start_run(
            config, model=model, tokenizer=tokenizer, display=display, dry_run=dry_run, fingerprints=fingerprints
        )
        if start.is_finished:
            return start.final
        reward_function = reward or open_reward(config.reward, "reward", device=device_of(start.model))
        renderer = start.renderer()
        prompts = encode_data(config, start.text, renderer, display)
        policy = start.policy(renderer)
        groups = longest_groups([*prompts.train, *prompts.held_out], config)
        check_policy(policy, groups, start.source, "rollout.max_new_tokens")
        train, size = config.train, config.rollout.prompts
        steps = list(training_steps([1] * len(prompts.train), size, train.seed, train.epochs, train.max_steps))
        critic = make_critic(config, start.source, policy, in_memory=model is not None)
        memory = ppo_footprint(config, policy, critic, prompts.train)
        set_micro_batch_size(policy, config, memory)
        describe(config, policy, critic, prompts, steps, memory, display)
        if dry_run:
            return print_plan(config, [], display)
        run = open_run(start, policy)
        if not reward:
            warn_if_reward_changed(run, config.reward)
            note_reward(run, config.reward)
        set_micro_batch_size(policy, config, memory, run.tokens)
        reference = AdapterOff.of(policy.scorer) if config.lora else Frozen.copy_of(policy.model)
        models = PPOModels(policy.scorer, reference, reward_function, critic, policy.tokenizer)
        precise = {f"policy.{name}": tensor for name, tensor in policy.precise.items()}
        both = nn.ModuleDict({"policy": policy.model, "value": critic.module})
        weights, optimizer = prepare_training(run, config, both, precise, len(steps))
    with running(run, policy, "ppo", len(steps)):
        evaluations = optimise(models, prompts, steps, config, policy.budget, weights, optimizer, run)
        for step, budget in trained(run, evaluations):
            with save_on_error(run, step, budget, evaluated=False), evaluating(run, step, prompts.held_out):
                metrics = evaluate(models, prompts.held_out, config, step, run)
            run.log_evaluation(step, metrics)
            advise(run, step)
    return finish_run(run, policy, "preftune sample --model FINAL --prompts PROMPTS")


def encode_data(config: PPOConfig, text: TextData, renderer: Renderer, display: Display) -> Prompts:
    """Return the token ids of the prompts, and print the accounts. Raises DataError if too many rows are dropped."""
    limit = config.data.max_prompt_length
    prompts = encode_prompts(text.train, renderer, limit, text.accounts[0])
    held_out = encode_prompts(text.held_out, renderer, limit, text.accounts[-1])
    report_accounts(text, display)
    for account in text.accounts:
        account.check(config.data.max_dropped)
    if not prompts:
        fix = "raise data.max_prompt_length, or use shorter prompts"
        raise DataError("no prompt is left to train on", where=text.accounts[0].source, fix=fix)
    return Prompts(prompts, held_out)


def longest_groups(prompts: Sequence[Prompt], config: PPOConfig) -> list[TokenGroup]:
    """Return the prompts with responses of the maximum length."""
    response = np.zeros(config.rollout.max_new_tokens, dtype=np.int32)
    return [TokenGroup(p.ids, (response,) * config.rollout.responses, origin=p.origin) for p in prompts]


def make_critic(config: PPOConfig, source: load.Source, policy: Policy, in_memory: bool) -> Critic:
    """Return the value model: a copy of `value.path` or of the policy with a scalar head, or a linear head of zeros."""
    if config.value.kind == "head":
        width = policy.model.config.get_text_config().hidden_size
        head = nn.Linear(width, 1).to(policy.scorer.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return Critic(None, head)
    if config.value.path:
        source = load.locate(config.value.path, "value.path")
        require_same_vocabulary(policy.tokenizer, load.load_tokenizer(source), config.value.path, "value model")
    if has_kept(policy.model) and not config.value.path:
        what = "the value model starts as a copy of the policy, which cannot include the kept adapter"
        raise ConfigError(what, where="lora.adapter", fix="set lora.adapter=merge, value.kind=head or value.path")
    if (in_memory or source.adapter) and not config.value.path:
        network = scalar_twin(policy.model)
    else:
        network = load_scalar(source, policy.model.dtype, new_head=True)
    network.config.use_cache = False
    network.requires_grad_(True)
    if config.model.quant:
        network = quantise(network, config.model.quant)
    if config.lora:
        targets, variant = config.lora.targets, variant_of(config.lora)
        if isinstance(targets, list):  # only the policy has some modules, such as the output layer
            targets = [name for name in targets if matches_module(network, name, targets)]
        saved = tuple(name for name in variant.modules_to_save if matches_module(network, name, [name]))
        variant = replace(variant, modules_to_save=saved)
        network = add_lora(network, config.lora.rank, config.lora.alpha, targets, "SEQ_CLS", variant)
    network.to(policy.scorer.device)
    scorer = scalar_scorer(network)
    if policy.budget.layout != "rows":
        choose_layout(scorer, policy.budget.layout)
    if config.model.gradient_checkpointing:
        load.checkpoint_activations(network)
    return Critic(scorer, None)


def ppo_footprint(config: PPOConfig, policy: Policy, critic: Critic, prompts: Sequence[Prompt]) -> estimate.Footprint:
    """Return the memory of policy and frozen reference, and of the value model's training."""
    groups = longest_groups(prompts[:64], config)
    memory = estimate.measure_footprint(policy.scorer, config, not config.lora, groups, policy.budget.layout)
    trained = sum(p.numel() for p in critic.module.parameters() if p.requires_grad)
    moments = moment_bytes(config.optim.name, config.optim.moments)
    fixed = {**memory.fixed, "value model": (4 + moments) * trained}
    return replace(memory, fixed=fixed, per_slot=memory.per_slot * (2 if critic.network else 1))


def describe(
    config: PPOConfig,
    policy: Policy,
    critic: Critic,
    prompts: Prompts,
    steps: Sequence[Step],
    memory: estimate.Footprint,
    display: Display,
) -> None:
    """Print the models, the data, the number of steps and the memory."""
    parameters, trained = model_size(policy.model)
    display.say(
        f"policy: {parameters:,} parameters, {trained:,} trained; "
        f"value model: {model_size(critic.module)[0]:,} parameters; "
        f"{str(policy.model.dtype).removeprefix('torch.')} on {policy.scorer.device}, layout {policy.budget.layout}"
    )
    for note in policy.notes:
        display.say(note)
    rollout, tokens = config.rollout, policy.budget.tokens
    sampled = sum(len(step.members) for step in steps) * rollout.responses
    display.say(
        f"data: {len(prompts.train)} prompts, {len(prompts.held_out)} held out; {len(steps)} steps, "
        f"{sampled:,} responses of up to {rollout.max_new_tokens} tokens; "
        f"{config.ppo.epochs * min(config.ppo.minibatches, len(steps[0].members))} updates per step"
    )
    peak = memory.peak(tokens, tokens)
    display.say(f"memory: about {estimate.gb(peak)} at the peak; micro-batches of up to {tokens:,} token slots")
