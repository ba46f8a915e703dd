"""preftune score: implicit rewards of a policy and its reference per sequence and token, or any other reward.

scores.jsonl          one object per judgement
scores.summary.json   accuracy, and RewardBench's figures for data with subsets
scores.html           with tokens: each token shaded by its reward
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from preftune.chat.open import ChatOptions, renderer_of
from preftune.chat.render import Renderer
from preftune.config.data import plain_paths
from preftune.config.schema import DataConfig, ModelConfig
from preftune.data.layout import Budget
from preftune.data.loss_items import as_pairs, require_judged
from preftune.data.read_groups import read_groups
from preftune.data.rewardbench_tokens import LENGTH, PROMPT, as_published
from preftune.data.tokenize_groups import Limits, require_vocabulary, tokenize
from preftune.errors import ConfigError, did_you_mean, require_writable
from preftune.files import write_json, write_rows
from preftune.formats.account import Account, format_origins
from preftune.formulas import implicit_reward
from preftune.lifecycle.open_policy import source_of
from preftune.lifecycle.packing_probe import choose_layout
from preftune.lifecycle.policy import compute_dtype, device_of, require_positions, require_same_vocabulary
from preftune.model.load import DTYPES, Source, load_config, load_model, load_tokenizer, max_positions
from preftune.model.logprobs import Scorer
from preftune.report.tokens import ShadedPair, pairs_to_show, write_token_page
from preftune.rewards.models import RewardModel
from preftune.rewards.open import open_reward
from preftune.rewards.reward import note_text_only, responses_to, rewards_by_group, why_missing
from preftune.scoring import SLOTS, score_tokens
from preftune.train.display import Display
from preftune.types import Message, PreferenceGroup, TokenGroup, content, masks_of, plain
from preftune.workflows.data_section import chat_options_of, max_dropped_of, read_rows
from preftune.workflows.summary import Mark, Marks, Scored, Tokens, marks_of, summary_lines, summary_of

MAX_LENGTH = 1024
MODES = ("corrected", "compatible")
UNREWARDED = "a response without a reward"
Groups = Sequence[PreferenceGroup]


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """Settings for implicit rewards. `data` is the section under which the rows are read and rendered.

    If `data` does not state max_length, it is 1024, or less if the context of the models is shorter, and 2048 for the
    compatible figures.
    """

    policy: str
    reference: str
    data: DataConfig
    beta: float = 0.1
    tokens: bool = False
    dtype: str = "auto"
    mode: str = "corrected"


@dataclass(frozen=True, slots=True)
class RewardScoreOptions:
    """Settings for any other reward. If `data` does not state max_length, a reward model reads 1024 tokens or less."""

    reward: str
    data: DataConfig


def options_for(
    models: tuple[str | None, str | None, str | None],
    data: DataConfig,
    beta: float,
    tokens: bool,
    dtype: str,
    mode: str,
) -> ScoreOptions | RewardScoreOptions:
    """Return the options for the policy, reference and reward in `models`.

    Raises ConfigError for options that cannot be combined.
    """
    policy, reference, reward = models
    if bool(policy) != bool(reference) or bool(policy) == bool(reward):
        what, fix = "the command needs --policy and --reference, or --reward alone", "set --policy and --reference"
        raise ConfigError(what, where="preftune score", fix=fix)
    if policy and reference:
        return ScoreOptions(policy, reference, data, beta, tokens, dtype, mode)
    unused = {"tokens": tokens, "mode": mode != "corrected", "dtype": dtype != "auto", "beta": beta != 0.1}
    rendering = (
        *("chat_template", "chat_template_kwargs", "as_chat", "thinking", "allow_dropped_text"),
        *("scored_turns", "system_message"),
    )
    unused_data = [f"data.{name}" for name in rendering if name in data.model_fields_set]
    for name in [*(f"--{name}" for name, is_set in unused.items() if is_set), *unused_data]:
        fix = "remove it, or set --policy and --reference instead of --reward"
        raise ConfigError("the setting applies only to an implicit reward", where=name, fix=fix)
    return RewardScoreOptions(reward or "", data)


def run(options: ScoreOptions | RewardScoreOptions, out: Path, display: Display) -> Path:
    """Write one JSON object per judgement to `out`, in the order of the data, and a summary next to it."""
    sources = sources_of(options) if isinstance(options, ScoreOptions) else {}
    require_writable(out)
    groups, account = read_rows(read_groups, options.data, sources.get("policy"))
    marks = marks_of(plain_paths(options.data.train, "score"))
    with_tokens = isinstance(options, ScoreOptions) and options.tokens
    if isinstance(options, RewardScoreOptions):
        tokenizer, by_mode = None, {"corrected": rewarded(options, groups, marks, account, display)}
    else:
        tokenizer, by_mode = implicit(options, sources, groups, marks, account, display)
    written = by_mode.get("compatible", by_mode["corrected"])
    summary = {"settings": settings_of(options), **summary_of(by_mode, marks)}
    summary_path = out.with_name(f"{out.stem}.summary.json")
    if with_tokens:
        write_token_page(out.with_suffix(".html"), "Rewards of tokens", *pages_of(written, tokenizer))
    write_json(summary_path, summary)
    write_rows(out, rows(written, marks, tokenizer, with_tokens))
    display.say("\n".join(summary_lines(summary)))
    display.say(f"done: {out}, {summary_path}" + (f", {out.with_suffix('.html')}" if with_tokens else ""))
    return out


def settings_of(options: ScoreOptions | RewardScoreOptions) -> dict[str, Any]:
    """Return the settings in the summary: `settings` is the data section; format, max_length and chat are unused."""
    unused: dict[str, Any] = {"format": "auto", "max_length": None}
    if isinstance(options, ScoreOptions):
        unused |= {"chat_template": None, "chat": asdict(ChatOptions())}
    section = options.data.model_dump(mode="json", exclude_unset=True)
    return {**plain(options), "data": options.data.train, **unused, "settings": section}


def rewarded(
    options: RewardScoreOptions, groups: Groups, marks: Marks, account: Account, display: Display
) -> list[Scored]:
    """Return the groups with rewards that are not implicit. Groups with a missing reward are dropped and counted."""
    if options.reward.startswith("implicit:"):
        what, fix = f"{options.reward} is an implicit reward", "set --policy and --reference instead"
        raise ConfigError(what, where="--reward", fix=fix)
    for group in groups:
        require_judged(group, "score")
    reward = open_reward(options.reward, "--reward", device=device_of(None))
    if isinstance(reward, RewardModel):
        return score_by_model(reward, options.data, groups, marks, account, display)
    for name in sorted(options.data.model_fields_set & {"max_length", "max_prompt_length", "overlong"}):
        what = "the key applies only to a model that reads tokens"
        raise ConfigError(what, where=f"data.{name}", fix="remove it")
    note_text_only(groups, account)
    _note_several_messages(groups, account)
    display.say("\n".join(account.lines()))
    responses = [
        responses_to(g.prompt, map(content, g.responses), g.ended or (True,) * len(g.responses), g.origin)
        for g in groups
    ]
    with display.stage("reward", len(groups)) as stage:
        rewards = rewards_by_group(reward, responses, "rewards", stage.advance)
    scored_groups = []
    for group, values in zip(groups, rewards, strict=True):
        if any(map(math.isnan, values)):
            account.drop(UNREWARDED, group.origin)
        else:
            scored_groups.append(Scored(group.origin, group.judgements, values))
    if UNREWARDED in account.dropped:
        origins = account.dropped[UNREWARDED]
        display.say(f"dropped {len(origins)} ({format_origins(origins, account.source)}): {UNREWARDED}")
        if why_missing(reward):
            display.say(f"  missing rewards: {why_missing(reward)}")
        account.check(1.0, "check the reward")
    return scored_groups


def _note_several_messages(groups: Groups, account: Account) -> None:
    for group in groups:
        if any(len(response) > 1 for response in group.responses if not isinstance(response, str)):
            account.note("a response has several messages; the reward reads their texts as one", group.origin)


def score_by_model(
    reward: RewardModel, data: DataConfig, groups: Groups, marks: Marks, account: Account, display: Display
) -> list[Scored]:
    """Return the groups with the rewards of a reward model. Long sequences are truncated as for an implicit reward."""
    limits = limits_of(data, min(MAX_LENGTH, reward.max_length))
    tokens = tokenized(groups, marks, reward.renderer, limits, account)
    display.say("\n".join(account.lines()))
    account.check(max_dropped_of(data))
    require_positions(reward.scorer.model, tokens, "--max-length")
    with display.stage("reward", len(tokens)) as stage:
        by_group = reward.score_groups(tokens)
        stage.advance(len(tokens))
    return [Scored(group.origin, group.judgements, rewards) for group, rewards in zip(tokens, by_group, strict=True)]


def limits_of(data: DataConfig, longest: int) -> Limits:
    """Return the maximum lengths; `longest` is used if `data` does not state max_length."""
    max_length = data.max_length if "max_length" in data.model_fields_set else longest
    return Limits(max_length, data.max_prompt_length, data.overlong, data.bad_rows)


def tokenized(groups: Groups, marks: Marks, renderer: Renderer, limits: Limits, account: Account) -> list[TokenGroup]:
    """Return the tokens of the groups, of RewardBench's as chats if the model has a chat template."""
    chats = [as_turns(group, marks) for group in groups] if renderer.tokenizer.chat_template else groups
    return list(as_pairs(tokenize(chats, renderer, limits, account), "score"))


def as_turns(group: PreferenceGroup, marks: Marks) -> PreferenceGroup:
    """Convert a text group of RewardBench, whose prompt is a user message, to chat. Return other groups unchanged."""
    if not isinstance(group.prompt, str) or not marks.get(group.origin, Mark()).subset:
        return group
    responses = tuple((Message("assistant", content(response)),) for response in group.responses)
    return replace(group, prompt=(Message("user", group.prompt),), responses=responses)


def sources_of(options: ScoreOptions) -> dict[str, Source]:
    """Return the sources of policy and reference. Raises ConfigError for invalid options before any data is read."""
    if options.dtype not in ("auto", *DTYPES):
        raise ConfigError(f"unknown precision {options.dtype!r}", where="--dtype", fix="use auto, fp32 or bf16")
    if options.mode not in MODES:
        raise ConfigError(f"unknown mode; {did_you_mean(options.mode, MODES)}", where=f"--mode {options.mode}")
    if options.mode == "compatible" and limits_of(options.data, LENGTH).max_length <= PROMPT:
        raise ConfigError(
            f"must be above {PROMPT} with --mode compatible",
            where="--max-length",
            why=f"RewardBench's own code keeps {PROMPT} tokens of a prompt that is too long",
            fix=f"set more than {PROMPT}, or use --mode corrected",
        )
    models = {"policy": options.policy, "reference": options.reference}
    return {name: source_of(path, f"--{name}") for name, path in models.items()}


def implicit(
    options: ScoreOptions, sources: dict[str, Source], groups: Groups, marks: Marks, account: Account, display: Display
) -> tuple[Any, dict[str, list[Scored]]]:
    """Return the tokenizer, and the groups with implicit rewards by mode: corrected, and compatible if requested."""
    renderer = renderer_of(sources["policy"], options.data.chat_template, chat_options_of(options.data))
    tokenizer = renderer.tokenizer
    require_same_vocabulary(tokenizer, load_tokenizer(sources["reference"]), options.reference)
    longest = min(MAX_LENGTH, *(max_positions(load_config(source)) or MAX_LENGTH for source in sources.values()))
    corrected = tokenized(groups, marks, renderer, limits_of(options.data, longest), account)
    readings = {"corrected": [[group] for group in corrected]}  # by mode, the parts that each group becomes
    if options.mode == "compatible":
        limit = limits_of(options.data, LENGTH).max_length
        readings["compatible"] = [as_published(group, tokenizer, limit, account) for group in groups]
    display.say("\n".join(account.lines()))
    account.check(max_dropped_of(options.data))
    all_parts = [part for reading in readings.values() for parts in reading for part in parts]
    dtype = compute_dtype(ModelConfig(path=options.policy, dtype=options.dtype))  # type: ignore[arg-type]
    log_probs: dict[str, dict[str, list[list[torch.Tensor]]]] = {}
    for name, source in sources.items():
        display.say(f"loading the {name} {source.adapter or source.base}")
        model = load_model(source, dtype, keep_quant=True).to(device_of(None))
        require_vocabulary(all_parts, model.get_input_embeddings().weight.shape[0], source.base)
        require_positions(model, all_parts, "--max-length")
        scorer = Scorer.of(model)
        layout, _ = choose_layout(scorer, "auto")
        with display.stage(f"score {name}", len(all_parts)) as stage:
            values = iter(score_tokens(scorer, all_parts, Budget(layout, SLOTS), stage.advance))
        log_probs[name] = {
            mode: [[response for _ in parts for response in next(values)] for parts in reading]
            for mode, reading in readings.items()
        }
        del model, scorer
    by_mode = {}
    for mode, reading in readings.items():
        by_group = zip(reading, log_probs["policy"][mode], log_probs["reference"][mode], strict=True)
        by_mode[mode] = [scored(parts, policy, ref, options.beta) for parts, policy, ref in by_group]
    return tokenizer, by_mode


def scored(parts: Sequence[TokenGroup], policy: Sequence[Any], reference: Sequence[Any], beta: float) -> Scored:
    """Return the group with its implicit rewards: fp64 sums over the fp32 token log-probs.

    Each of the `parts` of the group was tokenised with its own prompt.
    """
    masks = tuple(mask for part in parts for mask in masks_of(part)) if any(part.masks for part in parts) else ()
    group = replace(parts[0], response_ids=tuple(ids for part in parts for ids in part.response_ids), masks=masks)
    tokens = [implicit_reward(p, r, beta) for p, r in zip(policy, reference, strict=True)]
    sums = [float(values.sum()) for values in tokens]
    return Scored(group.origin, group.judgements, sums, Tokens(group, policy, reference, tokens))


def rows(groups: Sequence[Scored], marks: Marks, tokenizer: Any, with_tokens: bool) -> Iterator[dict[str, Any]]:
    """Yield the lines of scores.jsonl."""
    judged = ((group, j) for group in groups for j in group.judgements)
    for index, (group, j) in enumerate(judged):
        row: dict[str, Any] = {"index": index, "origin": group.origin}
        row |= {name: value for name, value in asdict(marks.get(group.origin, Mark())).items() if value}
        tokens = group.tokens
        sides = (("chosen", j.better), ("rejected", j.worse))
        if tokens:
            for name, sums in (("policy", tokens.policy), ("reference", tokens.reference)):
                row |= {f"{name}_{side}_logp": float(sums[i].sum()) for side, i in sides}
        row |= {f"reward_{side}": group.rewards[i] for side, i in sides}
        row["margin"] = group.rewards[j.better] - group.rewards[j.worse]
        if tokens:
            row |= {f"{side}_tokens": len(tokens.group.scored_ids[i]) for side, i in sides}
        if tokens and with_tokens:
            for side, i in sides:
                row[f"{side}_token_strings"] = tokens.strings(i, tokenizer)
                row[f"{side}_token_rewards"] = tokens.rewards[i].tolist()
        yield row


def pages_of(groups: Sequence[Scored], tokenizer: Any) -> tuple[list[ShadedPair], list[ShadedPair]]:
    """Return the pairs that the page shows: the first judgements, and those with the lowest margins below 0."""
    judged = [(group, j) for group in groups for j in group.judgements]

    def shaded(index: int) -> ShadedPair:
        group, j = judged[index]
        tokens = group.tokens
        assert tokens
        prompt = tokenizer.decode(tokens.group.prompt_ids.tolist())
        chosen, rejected = (
            tuple(zip(tokens.strings(i, tokenizer), tokens.rewards[i].tolist(), strict=True))
            for i in (j.better, j.worse)
        )
        return ShadedPair(group.origin, prompt, chosen, rejected)

    first, worst = pairs_to_show([group.rewards[j.better] - group.rewards[j.worse] for group, j in judged])
    return [shaded(index) for index in first], [shaded(index) for index in worst]
