"""preftune iterate: rounds of sample, reward, pairs, train, evaluate. Offline data stand still while the policy moves;
here the data move with it.

    out/round-01/  prompts.jsonl  samples.jsonl  prefs.jsonl  dpo/  evaluation.json
    out/final/     the policy of the last round
    manifest.json  what every piece was made from

Every piece is finished or not there, so the same command goes on wherever it was stopped, and comes to the same files.
A stop rule that is broken publishes the policy of the round before.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preftune.chat.open import ChatOptions, load_renderer, renderer_of
from preftune.config.sampling import IterateConfig
from preftune.config.schema import DataConfig, DPOConfig, ReferenceConfig
from preftune.data.order import permutation
from preftune.data.prompts import encode_prompts
from preftune.data.select import SelectionOptions
from preftune.errors import writing
from preftune.files import digest, write_json, write_rows
from preftune.formats.account import Account
from preftune.formulas import step_seed
from preftune.lifecycle.data import prompts_that_fit, read_prompt_data
from preftune.lifecycle.plan import print_plan
from preftune.lifecycle.policy import compute_dtype, device_of
from preftune.lifecycle.saved import (
    model_fingerprint,
    note_reward,
    open_policy,
    reward_fingerprint,
    reward_models_fingerprint,
    warn_if_reward_changed,
)
from preftune.measures.drift import figures
from preftune.methods import dpo
from preftune.methods.objective import bind_objective
from preftune.model import load
from preftune.model.generate import Sampling, sample
from preftune.model.logprobs import Scorer
from preftune.report.run import write_run_page
from preftune.rewards import chat_grades
from preftune.rewards.open import open_reward
from preftune.rewards.reward import Floats, PromptResponse, Reward, missing_error, responses_of, rewards_of, why_missing
from preftune.scoring import response_logps
from preftune.train.display import Display
from preftune.train.run import Run, run_identity
from preftune.train.track import open_trackers
from preftune.types import PreferenceGroup, as_json
from preftune.workflows import pairs
from preftune.workflows import sample as samples
from preftune.workflows.sample import SampleOptions


def run(
    config: IterateConfig, *, reward: Reward | None = None, display: Display | None = None, dry_run: bool = False
) -> Path:
    """Do the rounds and return the folder of the last policy. A reward may be given in memory."""
    display, out = display or Display(), Path(config.out)
    load.locate(config.model.path)
    bind_objective(config.terms)
    asked = read_prompt_data(config.data)
    moment = Run.manifest(out).get("rendered_at") or datetime.now().isoformat()  # what chat templates write as the date
    train = fitting(config, asked.train, asked.accounts[0], moment)
    held_out = fitting(config, asked.held_out, asked.accounts[-1], moment)
    for account in asked.accounts:
        for line in account.lines():
            display.say(line)
    identity, sources = config.model_dump(mode="json"), sources_of(config, reward)
    identity = run_identity(identity, asked.fingerprint, sources)
    Run.check(out, identity, type(config))
    judge = reward or open_reward(config.reward, "reward", device=device_of(None))
    if Run.finished(out):
        display.say(f"{out} is finished; its model is {out / 'final'}")
        return out / "final"
    each = min(config.prompts or len(train), len(train))
    responses = config.rounds * each * config.sample.n
    display.say(
        f"{config.rounds} rounds of {each} prompts, {config.sample.n} responses each: {responses:,} responses; "
        f"{len(held_out or train)} prompts in every evaluation"
    )
    wanted = chat_grades.estimate(judge, stand_ins(config, train, held_out or train))
    if wanted:
        display.say(f"reward: {wanted.describe()}")
    if dry_run:
        return print_plan(config, [], display)
    log = Run.open(out, identity, display, type(config))
    log.note(rendered_at=moment)
    if not reward:
        if warn_if_reward_changed(log, config.reward):  # figures of two rewards cannot be compared
            for old in [out / "start.json", *out.glob("round-*/evaluation.json")]:
                old.unlink(missing_ok=True)
        note_reward(log, config.reward)  # not before: killed in between, they would stay
    with tracked(log, config.track):
        policy = rounds(config, log, train, held_out or train, judge)
    final = publish(Path(policy), out / "final")
    write_run_page(out)
    log.note(finished=True, published=policy)
    display.say(f"done: {final}, the policy of {policy}")
    return final


def rounds(
    config: IterateConfig,
    log: Run,
    train: Sequence[PreferenceGroup],
    asked: Sequence[PreferenceGroup],
    judge: Reward,
) -> str:
    """All rounds, as far as the stop rules let them; the policy to publish."""
    policy, lineage = config.model.path, list[dict[str, Any]]()
    chat = ChatOptions(config.data.chat_template_kwargs, config.data.as_chat, log.known("rendered_at"))
    before = evaluated(config, log.folder / "start.json", policy, asked, judge, chat)
    log.evaluation(0, before)
    say_unrewarded(log, before, judge)
    for number in range(1, config.rounds + 1):
        folder, start = log.folder / f"round-{number:02d}", policy
        log.display.say(f"round {number} of {config.rounds}: from {start}")
        lineage.append(one_round(config, folder, number, start, train, judge, log.display, chat))
        policy = str(folder / "dpo" / "final")
        after = evaluated(config, folder / "evaluation.json", policy, asked, judge, chat)
        say_unrewarded(log, after, judge)
        log.evaluation(number, after)
        lineage[-1]["evaluation"] = after
        log.note(rounds=lineage)
        reason = enough(config, before, after)
        if reason:
            log.display.say(f"stopping after round {number}: {reason}")
            worse = beyond(config, after) or after["objective/score"] < before["objective/score"]
            if worse and number == 1:
                log.display.say("there is no round before it: its policy is the result all the same")
            return start if worse and number > 1 else policy
        before = after
    return policy


def stand_ins(
    config: IterateConfig, train: Sequence[PreferenceGroup], asked: Sequence[PreferenceGroup]
) -> Iterator[PromptResponse]:
    """As many answers as all rounds will have rewarded, each as long as it may be, four characters a token."""
    for number in range(config.rounds + 1):
        drawn = [train[i] for i in prompts_of_round(config, number, len(train))] if number else []
        for group, n in [*((g, config.sample.n) for g in drawn), *((g, config.sample.evaluation) for g in asked)]:
            for k in range(n):
                yield PromptResponse(group.prompt, f"{number} {k} {n}".rjust(4 * config.sample.max_new_tokens, "x"))


@contextmanager
def tracked(log: Run, names: Sequence[str]) -> Iterator[None]:
    """While open, the evaluations of the rounds go to the trackers too; each round's training has a run of its own."""
    log.trackers = open_trackers(list(names), log.folder, log.identity["config"])
    try:
        yield
    finally:
        for tracker in log.trackers:
            tracker.close()


def sources_of(config: IterateConfig, given: Reward | None) -> dict[str, str]:
    """Hashes of what the rounds are made from besides the prompts: another one under the same name is another run."""
    reward = reward_models_fingerprint(None if given else config.reward)
    return {"the first model": model_fingerprint(config.model.path), "the reward": reward}


def fitting(
    config: IterateConfig, groups: list[PreferenceGroup], account: Account, moment: str
) -> list[PreferenceGroup]:
    """The prompts of at most data.max_prompt_length tokens that leave the model room to answer."""
    if not groups:
        return []
    source = load.locate(config.model.path)
    renderer = load_renderer(config.data, source, moment=moment)
    new, longest = config.sample.max_new_tokens, config.data.max_prompt_length
    prompts = prompts_that_fit(
        groups, renderer, load.load_config(source), new, account, "sample.max_new_tokens", longest
    )
    account.check(config.data.max_dropped)
    kept = {prompt.text for prompt in prompts}
    return [group for group in groups if group.prompt in kept]


def one_round(
    config: IterateConfig,
    folder: Path,
    number: int,
    policy: str,
    train: Sequence[PreferenceGroup],
    judge: Reward,
    display: Display,
    chat: ChatOptions,
) -> dict[str, Any]:
    """Sample, reward, pair and train; what each piece is made of."""
    chosen = prompts_of_round(config, number, len(train))
    asked = folder / "prompts.jsonl"
    write_rows(asked, ({"prompt": as_json(train[i].prompt)} for i in chosen))
    settings = config.sample
    seed = step_seed(config.train.seed, number)
    sampling = Sampling(settings.n, settings.max_new_tokens, settings.temperature, settings.top_p, seed=seed)
    dtype, template = config.model.dtype, config.data.chat_template
    wanted = SampleOptions(policy, str(asked), sampling, dtype=dtype, chat_template=template, chat=chat)
    drawn = samples.run(wanted, folder / "samples.jsonl", display)
    prefs = folder / "prefs.jsonl"
    if not prefs.is_file():
        options = config.pairs
        how = SelectionOptions(options.select, options.gap, options.soft, beta=options.beta, seed=seed)
        pairs.run(str(drawn), prefs, how, judge, display)
    base = config.model.path if config.reference == "fixed" and number > 1 else None
    tuning = DPOConfig(
        model=config.model.model_copy(update={"path": policy}),
        data=DataConfig(
            train=str(prefs),
            max_length=config.max_length,
            chat_template=template,
            chat_template_kwargs=config.data.chat_template_kwargs,
            # a sampled response is what followed the generation prompt, word for word
            thinking="template" if isinstance(train[0].prompt, str) else "keep",
            max_dropped=1.0,
        ),
        reference=ReferenceConfig(path=base),
        loss=config.loss,
        optim=config.optim.model_copy(update={"lr": config.optim.lr * config.lr_decay ** (number - 1)}),
        batch=config.batch,
        train=config.train.model_copy(update={"seed": seed}),
        lora=config.lora,
        monitor=None,  # the round's own evaluation says as much
        track=config.track,
        out=str(folder / "dpo"),
    )
    dpo.run(tuning, display=display, moment=chat.moment)
    pieces = {path.name: digest(path) for path in (asked, drawn, prefs)}
    made_from = {"policy": policy, "reference": base or policy, "policy_weights": model_fingerprint(policy)}
    return {"round": number, **made_from, "reward": reward_fingerprint(config.reward), "seed": seed, "pieces": pieces}


def prompts_of_round(config: IterateConfig, number: int, available: int) -> list[int]:
    """The prompts of a round: each goes on in a seeded order where the last one ended, and begins again at its end."""
    if config.prompts is None:
        return list(range(available))
    each, found = min(config.prompts, available), list[int]()
    at = 0
    for _ in range(number):
        found = []
        while len(found) < each:
            prompt = permutation(available, config.train.seed, at // available)[at % available]
            at += 1
            if prompt not in found:  # a round that crosses the end of the prompts may meet one again
                found.append(prompt)
    return sorted(found)


@torch.no_grad()
def evaluated(
    config: IterateConfig,
    path: Path,
    policy: str,
    asked: Sequence[PreferenceGroup],
    judge: Reward,
    chat: ChatOptions,
) -> dict[str, float]:
    """Reward, KL from the first model, and how the responses look; read from `path` if it is there."""
    if path.is_file():
        return dict(json.loads(path.read_text()))
    device, dtype = device_of(None), compute_dtype(config.model)
    opened = open_policy(policy, "model.path", dtype, device)
    renderer = renderer_of(opened.source, config.data.chat_template, chat)
    tokenizer = renderer.tokenizer
    prompts = encode_prompts(asked, renderer, 1 << 20, Account("evaluation"))
    sampling = Sampling(config.sample.evaluation, config.sample.max_new_tokens, seed=config.train.seed)
    drawn = sample(opened.model, tokenizer, [p.ids.tolist() for p in prompts], sampling)
    answers = responses_of(prompts, drawn)
    when = f"evaluation of {policy}"
    rewards = rewards_of(judge, answers, when)
    if np.isnan(rewards).all():
        raise missing_error(judge, answers, rewards, when)
    groups = [sampled.group for sampled in drawn]
    own = response_logps(Scorer.of(opened.model), groups)
    del opened
    base = open_policy(config.model.path, "model.path", dtype, device)
    kl = own - response_logps(Scorer.of(base.model), groups)
    found = {
        **scores(rewards.reshape(len(prompts), -1)),
        "objective/kl": float(kl.mean()),
        **figures([a.response for a in answers], [a.ended for a in answers]),
    }
    write_json(path, found)
    return found


def scores(rewards_PM: Floats) -> dict[str, float]:
    """Mean reward, its standard error over prompts, and how many responses got none, if any."""
    by_prompt = np.nanmean(rewards_PM[~np.isnan(rewards_PM).all(axis=1)], axis=1)
    spread = float(by_prompt.std(ddof=1) / np.sqrt(len(by_prompt))) if len(by_prompt) > 1 else 0.0
    none = float(np.isnan(rewards_PM).sum())
    found = {"objective/score": float(np.nanmean(rewards_PM)), "objective/score_se": spread}
    return {**found, "objective/unrewarded": none} if none else found


def say_unrewarded(log: Run, found: dict[str, float], judge: Reward) -> None:
    """How many responses of an evaluation are not part of its mean."""
    if "objective/unrewarded" in found:
        number = found["objective/unrewarded"]
        log.display.say(f"{number:g} responses of the evaluation got no reward: {why_missing(judge)}".rstrip(": "))


def enough(config: IterateConfig, before: dict[str, float], after: dict[str, float]) -> str:
    """Why the rounds should end here, in words; empty if they should go on."""
    gain = after["objective/score"] - before["objective/score"]
    if config.stop.gain is not None and gain < config.stop.gain:
        return beyond(config, after) or f"the reward rose by {gain:.3f}, less than stop.gain={config.stop.gain:g}"
    return beyond(config, after)


def beyond(config: IterateConfig, after: dict[str, float]) -> str:
    """The limit that this policy has passed, in words. Without word pairs there is no diversity to lose."""
    stop, kl, diversity = config.stop, after["objective/kl"], after.get("diversity", 1.0)
    if stop.kl is not None and kl > stop.kl:
        return f"the policy is {kl:.2f} nats from the first model, more than stop.kl={stop.kl:g}"
    if stop.diversity is not None and diversity < stop.diversity:
        return f"only {diversity:.0%} of the word pairs are distinct, less than stop.diversity={stop.diversity:g}"
    return ""


def publish(policy: Path, final: Path) -> Path:
    """A copy of the last policy as the run's result, never half there."""
    part = final.with_name(f"final.part-{os.getpid()}")
    with writing(final):
        shutil.copytree(policy, part)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
    return final
