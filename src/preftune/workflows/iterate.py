"""preftune iterate: rounds of sampling, rewarding, pairing, training and evaluation.

DPO trains on a fixed data set while the policy changes; here each round samples new data from the current policy.

    out/round-01/  prompts.jsonl  samples.jsonl  prefs.jsonl  dpo/  evaluation.json  (judged.jsonl if people judge)
    out/final/     the published policy
    manifest.json  what each file was made from

Each file is complete or absent, so the same command resumes after an interruption and produces the same files. If a
stop rule ends the run because the last policy got worse, the policy of the round before it is published.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preftune.chat.open import ChatOptions, load_renderer, renderer_of
from preftune.config.sampling import IterateConfig
from preftune.config.schema import DataConfig, DPOConfig, ReferenceConfig
from preftune.data.prompts import encode_prompts
from preftune.data.select import SelectionOptions
from preftune.data.steps import permutation
from preftune.errors import DataError, Stopped, writing
from preftune.files import digest, sync, write_json, write_rows, write_text
from preftune.formats.account import Account
from preftune.formulas import Floats, mean_and_error, step_seed
from preftune.lifecycle import open_policy
from preftune.lifecycle.context import within_context
from preftune.lifecycle.data import prompts_that_fit, read_prompt_data
from preftune.lifecycle.finish import finished_lines, optional_pages
from preftune.lifecycle.plan import print_plan
from preftune.lifecycle.policy import compute_dtype, device_of
from preftune.lifecycle.run_samples import save_samples
from preftune.lifecycle.start import shown_sources
from preftune.measures.drift import figures
from preftune.methods import dpo
from preftune.methods.objective import bind_objective
from preftune.model import load
from preftune.model.generate import Sampled, Sampling, sample
from preftune.model.locate import ADAPTER_CONFIG, with_quant
from preftune.model.logprobs import Scorer
from preftune.report.card import Subject
from preftune.report.verdict import chat_command
from preftune.rewards import chat_grades
from preftune.rewards.open import open_reward
from preftune.rewards.reward import PromptResponse, Reward, missing_error, responses_of, rewards_of, why_missing
from preftune.scoring import response_logps
from preftune.train import manifest
from preftune.train.display import Display
from preftune.train.full_disk import patiently
from preftune.train.run import Run
from preftune.train.track import close_trackers
from preftune.types import PreferenceGroup, as_json
from preftune.workflows import label, pairs
from preftune.workflows import sample as samples
from preftune.workflows.label import LabelOptions, command_for, journal_of
from preftune.workflows.sample import SampleOptions
from preftune.workflows.stop_rounds import exceeded_limit, gain_of, stop_reason

Groups = Sequence[PreferenceGroup]
JUDGED = "judged.jsonl"
"""The preference data of a round while people judge it. `prefs.jsonl` is a copy of the complete file."""


def run(
    config: IterateConfig, *, reward: Reward | None = None, display: Display | None = None, dry_run: bool = False
) -> Path:
    """Run the rounds and return the folder of the final model. `reward` replaces the reward of the config."""
    display, out, in_memory = display or Display(), Path(config.out), reward is not None
    config = within_context(config, display)
    bind_objective(config.terms)
    display.say(f"reading {shown_sources(config.data)}")
    prompts = read_prompt_data(config.data)
    moment = Run.manifest(out).get("rendered_at") or datetime.now().isoformat()  # the date for chat templates
    display.say("loading transformers and the tokenizer")
    train = prompts_with_room(config, prompts.train, prompts.accounts[0], moment)
    held_out = prompts_with_room(config, prompts.held_out, prompts.accounts[-1], moment)
    for account in prompts.accounts:
        display.say("\n".join(account.lines()))
    weights = open_policy.reward_models_fingerprint(None if in_memory else config.reward)
    sources = {"the first model": open_policy.model_fingerprint(config.model.path), "the reward": weights}
    identity = manifest.run_identity(config.model_dump(mode="json"), prompts.fingerprint, sources)
    Run.check(out, identity, type(config))
    if config.judged_by_people:
        display.say("people judge the responses: the section people applies, and the section pairs does not")
    else:
        reward = reward or open_reward(config.reward, "reward", device=device_of(None))
    if intact(out, display):
        display.say(f"{out} is finished, so nothing was trained; its model is in {out / 'final'}")
        return out / "final"
    per_round = min(config.prompts or len(train), len(train))
    responses = config.rounds * per_round * config.sample.n
    display.say(
        f"{config.rounds} rounds of {per_round} prompts, {config.sample.n} responses each: {responses:,} responses; "
        f"{len(held_out or train)} prompts in every evaluation"
    )
    estimate = chat_grades.estimate(reward, placeholders(config, train, held_out or train)) if reward else None
    if estimate:
        display.say(f"reward: {estimate.describe()}")
    if dry_run:
        return print_plan(config, [], display)
    with closing(Run.open(out, identity, display, type(config))) as log:
        log.note(rendered_at=moment)
        return run_rounds(config, log, train, held_out or train, reward, in_memory)


def intact(out: Path, display: Display) -> bool:
    """Return whether the folder has a finished command with an intact final model. A damaged one is reported."""
    problem = manifest.final_damage(out) if Run.finished(out) else ""
    if problem:
        display.say(f"{out}: the final model is damaged ({problem}). It is copied again from its round")
    return Run.finished(out) and not problem


def run_rounds(
    config: IterateConfig, log: Run, train: Groups, evaluation: Groups, reward: Reward | None, in_memory: bool
) -> Path:
    """Run the rounds, publish the policy and mark the command as finished."""
    out, display = log.folder, log.display
    if not in_memory:
        # evaluations by different rewards cannot be compared
        if open_policy.warn_if_reward_changed(log, config.reward):
            for old in [out / "start.json", *out.glob("round-*/evaluation.json")]:
                old.unlink(missing_ok=True)
            parts = log.fact("parts") or {}
            log.note(parts={name: sha256 for name, sha256 in parts.items() if not name.endswith(".json")})
        # after the deletion, so that an interruption cannot leave old evaluations
        open_policy.note_reward(log, config.reward)
    with tracked(log):
        policy = rounds(config, log, train, evaluation, reward)
    final = patiently(lambda: publish(Path(policy), out / "final"), display.say)
    kind = "adapter" if (final / ADAPTER_CONFIG).is_file() else "model"
    optional_pages(log, final, Subject(out.name, kind, config.model.path, out), unit="round")
    hashes = {"final": manifest.model_hashes(final), "metrics": log.metrics.position()}
    log.note(finished=True, published=policy, **hashes)
    base = with_quant(config.model.path, config.model.quant) if not in_memory else "MODEL"
    chat = chat_command(str(final), base)
    finished_lines(log, f"done: {final}, the policy of {policy}, report in {out / 'report.html'}. Next: {chat}")
    return final


def rounds(config: IterateConfig, log: Run, train: Groups, evaluation: Groups, reward: Reward | None) -> str:
    """Run the rounds until the last one or a stop rule. Return the path of the policy to publish.

    Without a reward, people judge the responses, and the evaluations have no score.
    """
    policy, lineage = config.model.path, list[dict[str, Any]]()
    moment, save = log.fact("rendered_at"), partial(save_samples, log.folder)
    parts, first = manifest.Parts(log.folder, log.display.say), log.folder / "start.json"
    parts.done(first)  # sets a damaged one aside
    before = evaluated(config, first, policy, evaluation, reward, moment, partial(save, 0))
    parts.record(first)
    log.log_evaluation(0, before)
    say_unrewarded(log, before, reward)
    for number in range(1, config.rounds + 1):
        folder, start = log.folder / f"round-{number:02d}", policy
        log.display.say(f"round {number} of {config.rounds}: from {start}")
        lineage.append(one_round(config, log, folder, number, start, train, reward))
        policy = str(folder / "dpo" / "final")
        path = folder / "evaluation.json"
        parts.done(path)
        after = evaluated(config, path, policy, evaluation, reward, moment, partial(save, number))
        parts.record(path)
        say_unrewarded(log, after, reward)
        log.log_evaluation(number, after)
        lineage[-1]["evaluation"] = after
        log.note(rounds=lineage)
        reason = stop_reason(config, before, after)
        if reason:
            log.display.say(f"stopping after round {number}: {reason}")
            worse = exceeded_limit(config, after) or gain_of(before, after) < 0
            if worse and number == 1:
                log.display.say("there is no earlier round, so the final model is the policy of round 1")
            return start if worse and number > 1 else policy
        before = after
    return policy


def placeholders(config: IterateConfig, train: Groups, evaluation: Groups) -> Iterator[PromptResponse]:
    """Yield one response of maximum length, at four characters per token, for each that the rounds will reward."""
    for number in range(config.rounds + 1):
        sampled = [train[i] for i in prompts_of_round(config, number, len(train))] if number else []
        for group, n in [(g, config.sample.n) for g in sampled] + [(g, config.sample.evaluation) for g in evaluation]:
            for k in range(n):
                yield PromptResponse(group.prompt, f"{number} {k} {n}".rjust(4 * config.sample.max_new_tokens, "x"))


@contextmanager
def tracked(log: Run) -> Iterator[None]:
    """Also send the evaluations to the trackers inside this context. The training of each round is a separate run."""
    log.open_trackers()
    try:
        yield
    finally:
        close_trackers(log.trackers, log.display.say)


def prompts_with_room(
    config: IterateConfig, groups: Sequence[PreferenceGroup], account: Account, moment: str
) -> list[PreferenceGroup]:
    """Return the prompts of at most data.max_prompt_length tokens that leave the model room for a response."""
    if not groups:
        return []
    source = load.locate(config.model.path)
    renderer = load_renderer(config.data, source, moment=moment)
    new, longest = config.sample.max_new_tokens, config.data.max_prompt_length
    prompts = prompts_that_fit(
        groups, renderer, load.load_config(source), new, account, "sample.max_new_tokens", longest
    )
    account.check(config.data.max_dropped)
    fitting = {prompt.text for prompt in prompts}
    return [group for group in groups if group.prompt in fitting]


def one_round(
    config: IterateConfig, log: Run, folder: Path, number: int, policy: str, train: Groups, reward: Reward | None
) -> dict[str, Any]:
    """Sample, reward, pair and train. Return what the files of the round were made from, for the manifest."""
    moment = log.fact("rendered_at")
    indices = prompts_of_round(config, number, len(train))
    prompts = folder / "prompts.jsonl"
    write_rows(prompts, ({"prompt": as_json(train[i].prompt)} for i in indices))
    settings = config.sample
    seed = step_seed(config.train.seed, number)
    sampling = Sampling(settings.n, settings.max_new_tokens, settings.temperature, settings.top_p, seed=seed)
    template: dict[str, Any] = {name: getattr(config.data, name) for name in ("chat_template", "chat_template_kwargs")}
    data = DataConfig(train=str(prompts), as_chat=config.data.as_chat, **template)
    options = SampleOptions(policy, data, sampling, dtype=config.model.dtype, moment=moment)
    parts, path = manifest.Parts(log.folder, log.display.say), folder / "samples.jsonl"
    parts.done(path, path.with_name(f"{path.name}.meta.json"))  # sets a damaged one aside
    sampled = samples.run(options, path, log.display)
    parts.record(sampled)
    prefs = folder / "prefs.jsonl"
    prefs_done = parts.done(prefs)
    if reward is None:
        wait_for_people(config, sampled, prefs, seed, log.display)
    elif not prefs_done:
        select = config.pairs
        selection = SelectionOptions(select.select, select.gap, select.soft, beta=select.beta, seed=seed)
        pairs.run(str(sampled), prefs, selection, reward, log.display)
    parts.record(prefs)
    first = with_quant(config.model.path, config.model.quant)
    base = first if config.reference == "fixed" and number > 1 else None
    tuning = DPOConfig(
        model=config.model.model_copy(update={"path": policy}),
        data=DataConfig(
            train=str(prefs),
            max_length=config.max_length,
            # a sampled response is the exact text that followed the generation prompt
            thinking="template" if isinstance(train[0].prompt, str) else "keep",
            max_dropped=1.0,
            **template,
        ),
        reference=ReferenceConfig(path=base),
        loss=config.loss,
        optim=config.optim.model_copy(update={"lr": config.optim.lr * config.lr_decay ** (number - 1)}),
        batch=config.batch,
        train=config.train.model_copy(update={"seed": seed, "save_end": False}),
        lora=config.lora,
        monitor=None,  # the evaluation after the round measures the same
        track=config.track,
        track_names=config.track_names,
        out=str(folder / "dpo"),
    )
    dpo.run(tuning, display=log.display, moment=moment)
    shutil.rmtree(folder / "dpo" / "checkpoints", ignore_errors=True)  # the round is complete
    journals = [journal_of(folder / JUDGED)] if reward is None else []
    pieces = {path.name: digest(path) for path in (prompts, sampled, prefs, *journals)}
    made_from = {"policy": policy, "reference": base or policy, "policy_weights": open_policy.model_fingerprint(policy)}
    fingerprint = open_policy.reward_fingerprint(config.reward)
    return {"round": number, **made_from, "reward": fingerprint, "seed": seed, "pieces": pieces}


def wait_for_people(config: IterateConfig, sampled: Path, prefs: Path, seed: int, display: Display) -> None:
    """Write `prefs` when people have judged all pairs of the round. Raises Stopped while verdicts are missing."""
    if prefs.is_file():
        return
    settings, judged = config.people, prefs.with_name(JUDGED)
    data = DataConfig(train=str(sampled))
    options = LabelOptions(data, None, settings.pairs, settings.votes, settings.soft, seed, settings.port)
    if not label.run(options, judged, display, page=settings.wait):
        collect = f"run\n    {command_for(options, judged)}\n  and then rerun this command"
        raise Stopped(
            "people have not judged all pairs of the round",
            where=str(sampled),
            fix="rerun the same command to judge the rest" if settings.wait else collect,
        )
    if not judged.stat().st_size:
        raise DataError(
            "people prefer no response in any pair of the round",
            where=str(journal_of(judged)),
            why="all pairs are ties or were skipped, so there is nothing to train on",
            fix="withdraw verdicts by removing lines of this file, or set people.soft=true, which keeps ties",
        )
    write_text(prefs, [judged.read_text(encoding="utf-8")])


def prompts_of_round(config: IterateConfig, number: int, available: int) -> list[int]:
    """Return the indices of a round's prompts. Rounds take them in turn from seeded permutations of all prompts."""
    if config.prompts is None:
        return list(range(available))
    per_round, indices = min(config.prompts, available), list[int]()
    position = 0
    for _ in range(number):
        indices = []
        while len(indices) < per_round:
            prompt = permutation(available, config.train.seed, position // available)[position % available]
            position += 1
            if prompt not in indices:  # a round that crosses into the next permutation can meet a prompt twice
                indices.append(prompt)
    return sorted(indices)


@torch.no_grad()
def evaluated(
    config: IterateConfig,
    path: Path,
    policy: str,
    groups: Groups,
    reward: Reward | None,
    moment: str | None,
    save: Callable[[Any, Sequence[Sampled]], None] | None = None,
) -> dict[str, float]:
    """Return reward, KL from the first model, and statistics of the responses; read from `path` if it exists.

    Without a reward, the result has no score. `save` saves the responses (lifecycle.run_samples).
    """
    if path.is_file():
        return dict(json.loads(path.read_text()))
    device, dtype = device_of(None), compute_dtype(config.model)
    opened = open_policy.open_policy(policy, "model.path", dtype, device)
    chat = ChatOptions(config.data.chat_template_kwargs, config.data.as_chat, moment)
    renderer = renderer_of(opened.source, config.data.chat_template, chat)
    tokenizer = renderer.tokenizer
    prompts = encode_prompts(groups, renderer, 1 << 20, Account("evaluation"))
    sampling = Sampling(config.sample.evaluation, config.sample.max_new_tokens, seed=config.train.seed)
    sampled = sample(opened.model, tokenizer, [p.ids.tolist() for p in prompts], sampling)
    responses = responses_of(prompts, sampled)
    measured = dict[str, float]()
    if reward is not None:
        when = f"evaluation of {policy}"
        rewards = rewards_of(reward, responses, when)
        if np.isnan(rewards).all():
            raise missing_error(reward, responses, rewards, when)
        measured = scores(rewards.reshape(len(prompts), -1))
    tokens = [s.group for s in sampled]
    log_policy = response_logps(Scorer.of(opened.model), tokens)
    del opened
    first = with_quant(config.model.path, config.model.quant)
    base = open_policy.open_policy(first, "model.path", dtype, device)
    kl = log_policy - response_logps(Scorer.of(base.model), tokens)
    result = {
        **measured,
        "objective/kl": float(kl.mean()),
        **figures([r.response for r in responses], [r.ended for r in responses]),
    }
    if save:
        save(tokenizer, sampled)
    write_json(path, result, durable=True)
    return result


def scores(rewards_PM: Floats) -> dict[str, float]:
    """Return the mean reward, its standard error over prompts, and, if any, the number of missing rewards."""
    by_prompt = np.nanmean(rewards_PM[~np.isnan(rewards_PM).all(axis=1)], axis=1)
    error = mean_and_error(by_prompt[:, None])[1]
    missing = float(np.isnan(rewards_PM).sum())
    result = {"objective/score": float(np.nanmean(rewards_PM)), "objective/score_se": error}
    return {**result, "objective/unrewarded": missing} if missing else result


def say_unrewarded(log: Run, evaluation: dict[str, float], reward: Reward | None) -> None:
    """Print how many responses of an evaluation are missing from its mean reward."""
    if reward is not None and "objective/unrewarded" in evaluation:
        number = evaluation["objective/unrewarded"]
        log.display.say(f"{number:g} responses of the evaluation got no reward: {why_missing(reward)}".rstrip(": "))


def publish(policy: Path, final: Path) -> Path:
    """Copy the policy to `final` and return it. An interruption cannot leave an incomplete copy there."""
    part = final.with_name(f"final.part-{os.getpid()}")
    with writing(final):
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(policy, part)
        for path in (*part.rglob("*"), part):
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
    return final
