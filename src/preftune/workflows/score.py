"""preftune score: implicit rewards of a policy against its reference, per sequence and per token, or any other reward.

scores.jsonl          one object a judgement
scores.summary.json   accuracy, and RewardBench's figures for data with subsets
scores.html           with tokens: each token shaded by its reward
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from preftune.chat.open import ChatOptions, renderer_of
from preftune.chat.render import Renderer
from preftune.config.schema import DataConfig, ModelConfig
from preftune.data.groups import Limits, read_groups, require_vocabulary, tokenize
from preftune.data.items import as_pairs, require_judged
from preftune.data.layout import Budget
from preftune.data.rewardbench_tokens import LENGTH, PROMPT, as_published
from preftune.errors import ConfigError, did_you_mean, require_writable
from preftune.files import write_json, write_rows
from preftune.formats.account import Account, format_origins
from preftune.formulas import implicit_reward
from preftune.lifecycle.packing_probe import admit
from preftune.lifecycle.policy import compute_dtype, device_of, require_positions, require_same_vocabulary
from preftune.lifecycle.saved import source_of
from preftune.lifecycle.sections import max_dropped_of, options_of, require_rows, rows_of, section_of
from preftune.model.load import DTYPES, Source, load_config, load_model, load_tokenizer, positions
from preftune.model.logprobs import Scorer, logps
from preftune.report.tokens import ShadedPair, pairs_to_show, write_token_page
from preftune.rewards.models import RewardModel
from preftune.rewards.open import open_reward
from preftune.rewards.reward import PromptResponse, note_text_only, rewards_by_group, why_missing
from preftune.scoring import SLOTS, score_tokens
from preftune.train.display import Display
from preftune.types import Message, PreferenceGroup, TokenGroup, content
from preftune.workflows.summary import Mark, Scored, Tokens, lines_of, marks_of, summary_of

MAX_LENGTH = 1024
MODES = ("corrected", "compatible")
UNREWARDED = "a response without a reward"


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What is scored, with what. `max_length` None: 1024 or as much as the models read, and 2048 for the compatible
    figures. `settings` is a whole data section; it takes the place of format, max_length, chat_template and chat."""

    policy: str
    reference: str
    data: str
    beta: float = 0.1
    tokens: bool = False
    format: str = "auto"
    max_length: int | None = None
    dtype: str = "auto"
    chat_template: str | None = None
    mode: str = "corrected"
    chat: ChatOptions = field(default_factory=ChatOptions)
    settings: DataConfig | None = None

    @property
    def section(self) -> DataConfig:
        """The settings under which the rows are read."""
        own = {"format": self.format, "max_length": self.max_length, "chat_template": self.chat_template}
        return section_of(self.data, self.settings, **own)

    @property
    def options(self) -> ChatOptions:
        """How chat is rendered."""
        return options_of(self.settings, self.chat)


@dataclass(frozen=True, slots=True)
class RewardScoreOptions:
    """What is scored with a reward. `max_length` is for a reward model; None: 1024, or as much as it can read.
    `settings` is a whole data section; it takes the place of format and max_length."""

    reward: str
    data: str
    format: str = "auto"
    max_length: int | None = None
    settings: DataConfig | None = None

    @property
    def section(self) -> DataConfig:
        """The settings under which the rows are read."""
        return section_of(self.data, self.settings, format=self.format, max_length=self.max_length)


def scoring_of(  # noqa: PLR0913, PLR0917 - the options of the command
    models: tuple[str | None, str | None, str | None],
    data: str,
    beta: float,
    tokens: bool,
    format: str,
    max_length: int | None,
    dtype: str,
    chat_template: str | None,
    mode: str,
    chat: ChatOptions | None = None,
    settings: DataConfig | None = None,
) -> ScoreOptions | RewardScoreOptions:
    """What policy, reference and reward of `models` mean. Raises ConfigError for options that do not go together."""
    policy, reference, reward = models
    if bool(policy) != bool(reference) or bool(policy) == bool(reward):
        raise ConfigError("needs --policy and --reference, or --reward alone", where="preftune score")
    if policy and reference:
        own = (data, beta, tokens, format, max_length, dtype, chat_template, mode, chat or ChatOptions(), settings)
        return ScoreOptions(policy, reference, *own)
    stated = settings.model_fields_set if settings else set()
    useless = {
        "tokens": tokens,
        "mode": mode != "corrected",
        "dtype": dtype != "auto",
        "beta": beta != 0.1,
        "chat-template": chat_template,
        "chat-template-kwargs": chat and chat.arguments,
        "as-chat": chat and chat.as_chat,
    }
    rendering = ("chat_template", "chat_template_kwargs", "as_chat", "thinking", "allow_dropped_text")
    set_in_vain = [f"data.{name}" for name in rendering if name in stated]
    for name in [*(f"--{name}" for name, value in useless.items() if value), *set_in_vain]:
        raise ConfigError("is for an implicit reward", where=name, fix="leave it out, or give --policy and --reference")
    return RewardScoreOptions(reward or "", data, format, max_length, settings)


def run(scoring: ScoreOptions | RewardScoreOptions, out: Path, display: Display) -> Path:
    """Write one JSON object for each judgement to `out`, in the order of the data, and beside it what they come to."""
    sources = sources_of(scoring) if isinstance(scoring, ScoreOptions) else {}
    require_writable(out)
    groups, account = read_groups(scoring.data, rows_of(scoring.section))
    require_rows(account, scoring.section)
    marks = marks_of(scoring.data)
    with_tokens = isinstance(scoring, ScoreOptions) and scoring.tokens
    if isinstance(scoring, RewardScoreOptions):
        tokenizer, found = None, {"corrected": rewarded(scoring, groups, marks, account, display)}
    else:
        tokenizer, found = implicit(scoring, sources, groups, marks, account, display)
    written = found.get("compatible", found["corrected"])
    section = scoring.section.model_dump(mode="json", exclude_unset=True)
    settings = {**asdict(replace(scoring, settings=None)), "settings": section}
    summary = {"settings": settings, **summary_of(found, marks)}
    beside = out.with_name(f"{out.stem}.summary.json")
    if with_tokens:
        write_token_page(out.with_suffix(".html"), "Rewards of tokens", *pages_of(written, tokenizer))
    write_json(beside, summary)
    write_rows(out, rows(written, marks, tokenizer, with_tokens))
    for line in lines_of(summary):
        display.say(line)
    display.say(f"done: {out}, {beside}" + (f", {out.with_suffix('.html')}" if with_tokens else ""))
    return out


def rewarded(
    scoring: RewardScoreOptions,
    groups: Sequence[PreferenceGroup],
    marks: dict[str, Mark],
    account: Account,
    display: Display,
) -> list[Scored]:
    """The groups with the rewards that any reward gives them."""
    if scoring.reward.startswith("implicit:"):
        raise ConfigError("an implicit reward", where="--reward", fix="give it as --policy and --reference")
    for group in groups:
        require_judged(group, "score")
    reward = open_reward(scoring.reward, "--reward", device=device_of(None))
    if isinstance(reward, RewardModel):
        return by_model(reward, scoring.section, groups, marks, account, display)
    for name in sorted(scoring.section.model_fields_set & {"max_length", "max_prompt_length", "overlong"}):
        raise ConfigError("is for a model that reads tokens", where=f"data.{name}", fix="leave it out")
    note_text_only(groups, account)
    for line in account.lines():
        display.say(line)
    with display.stage("reward", len(groups)) as stage:
        found = rewards_by_group(reward, answers_of_groups(groups), "rewards", stage.advance)
    both = list(zip(groups, found, strict=True))
    for lacking in [group.origin for group, rewards in both if any(map(math.isnan, rewards))]:
        account.drop(UNREWARDED, lacking)
    if UNREWARDED in account.dropped:
        origins = account.dropped[UNREWARDED]
        display.say(f"dropped {len(origins)} ({format_origins(origins, scoring.data)}): {UNREWARDED}")
        if why_missing(reward):
            display.say(f"  without a reward: {why_missing(reward)}")
        account.check(1.0, "look at the reward")
    return [Scored(g.origin, g.judgements, rewards) for g, rewards in both if not any(map(math.isnan, rewards))]


def by_model(
    reward: RewardModel,
    section: DataConfig,
    groups: Sequence[PreferenceGroup],
    marks: dict[str, Mark],
    account: Account,
    display: Display,
) -> list[Scored]:
    """The groups with the rewards of a reward model; what is too long for it is cut as for an implicit reward."""
    turned = [as_turns(group, marks) for group in groups] if reward.renderer.tokenizer.chat_template else groups
    limits = limits_of(section, min(MAX_LENGTH, reward.max_length))
    tokens = as_pairs(tokenize(turned, reward.renderer, limits, account), "score")
    for line in account.lines():
        display.say(line)
    account.check(max_dropped_of(section))
    require_positions(reward.scorer.model, tokens, "--max-length")
    with display.stage("reward", len(tokens)) as stage:
        found = reward.score_groups(tokens)
        stage.advance(len(tokens))
    return [Scored(group.origin, group.judgements, rewards) for group, rewards in zip(tokens, found, strict=True)]


def limits_of(section: DataConfig, longest: int) -> Limits:
    """How long sequences may be; `longest` where the settings leave it open."""
    most = section.max_length if "max_length" in section.model_fields_set else longest
    return Limits(most, section.max_prompt_length, section.overlong, section.bad_rows)


def answers_of_groups(groups: Sequence[PreferenceGroup]) -> list[list[PromptResponse]]:
    """The responses of each group, to be rewarded."""
    return [
        [
            PromptResponse(group.prompt, content(response), end, group.origin)
            for response, end in zip(group.responses, group.ended or (True,) * len(group.responses), strict=True)
        ]
        for group in groups
    ]


def as_turns(group: PreferenceGroup, marks: dict[str, Mark]) -> PreferenceGroup:
    """RewardBench's prompts are what a user says: the group as a chat. Other groups are left alone."""
    if not isinstance(group.prompt, str) or not marks.get(group.origin, Mark()).subset:
        return group
    answers = tuple((Message("assistant", content(response)),) for response in group.responses)
    return replace(group, prompt=(Message("user", group.prompt),), responses=answers)


def sources_of(scoring: ScoreOptions) -> dict[str, Source]:
    """Policy and reference. Raises for options that nothing can mean, before anything is read."""
    if scoring.dtype not in ("auto", *DTYPES):
        raise ConfigError(f"unknown precision {scoring.dtype!r}", where="--dtype", fix="use auto, fp32 or bf16")
    if scoring.mode not in MODES:
        raise ConfigError(f"unknown mode; {did_you_mean(scoring.mode, MODES)}", where=f"--mode {scoring.mode}")
    if scoring.mode == "compatible" and limits_of(scoring.section, LENGTH).max_length <= PROMPT:
        raise ConfigError(
            f"the published reading keeps {PROMPT} tokens of a prompt that is too long",
            where="--max-length",
            fix=f"give more than {PROMPT}, or --mode corrected",
        )
    models = {"policy": scoring.policy, "reference": scoring.reference}
    return {name: source_of(path, f"--{name}") for name, path in models.items()}


def implicit(
    scoring: ScoreOptions,
    sources: dict[str, Source],
    groups: Sequence[PreferenceGroup],
    marks: dict[str, Mark],
    account: Account,
    display: Display,
) -> tuple[Any, dict[str, list[Scored]]]:
    """The tokenizer, and the groups with implicit rewards: corrected, and compatible if that is asked for."""
    renderer = renderer_of(sources["policy"], scoring.section.chat_template, scoring.options)
    tokenizer = renderer.tokenizer
    require_same_vocabulary(tokenizer, load_tokenizer(sources["reference"]), scoring.reference)
    longest = min(MAX_LENGTH, *(positions(load_config(source)) or MAX_LENGTH for source in sources.values()))
    readings = readings_of(scoring, groups, marks, renderer, longest, account)
    for line in account.lines():
        display.say(line)
    account.check(max_dropped_of(scoring.section))
    asked = [part for reading in readings.values() for parts in reading for part in parts]
    dtype = compute_dtype(ModelConfig(path=scoring.policy, dtype=scoring.dtype))  # type: ignore[arg-type]
    says: dict[str, dict[str, list[list[torch.Tensor]]]] = {}
    for name, source in sources.items():
        model = load_model(source, dtype).to(device_of(None))
        require_vocabulary(asked, model.get_input_embeddings().weight.shape[0], source.base)
        require_positions(model, asked, "--max-length")
        values = iter(token_logps(Scorer.of(model), asked, display, name))
        says[name] = {
            mode: [[one for _ in parts for one in next(values)] for parts in reading]
            for mode, reading in readings.items()
        }
        del model
    found = {}
    for mode, reading in readings.items():
        both = zip(reading, says["policy"][mode], says["reference"][mode], strict=True)
        found[mode] = [scored(joined(parts), policy, reference, scoring.beta) for parts, policy, reference in both]
    return tokenizer, found


def readings_of(
    scoring: ScoreOptions,
    groups: Sequence[PreferenceGroup],
    marks: dict[str, Mark],
    renderer: Renderer,
    longest: int,
    account: Account,
) -> dict[str, list[list[TokenGroup]]]:
    """For each way to read the data, the token groups that each of its groups becomes."""
    limits = limits_of(scoring.section, longest)
    turned = [as_turns(group, marks) for group in groups] if renderer.tokenizer.chat_template else groups
    readings = {"corrected": [[group] for group in as_pairs(tokenize(turned, renderer, limits, account), "score")]}
    if scoring.mode == "compatible":
        limit = limits_of(scoring.section, LENGTH).max_length
        readings["compatible"] = [as_published(group, renderer.tokenizer, limit, account) for group in groups]
    return readings


def joined(parts: Sequence[TokenGroup]) -> TokenGroup:
    """One group again, where each response was read after a prompt of its own."""
    return replace(parts[0], response_ids=tuple(ids for part in parts for ids in part.response_ids))


def scored(group: TokenGroup, policy: Sequence[Any], reference: Sequence[Any], beta: float) -> Scored:
    """Sums are taken in fp64 of the fp32 token log-probs."""
    tokens = [implicit_reward(p, r, beta) for p, r in zip(policy, reference, strict=True)]
    sums = [float(values.sum()) for values in tokens]
    return Scored(group.origin, group.judgements, sums, Tokens(group, policy, reference, tokens))


def token_logps(scorer: Scorer, groups: Sequence[TokenGroup], display: Display, name: str) -> list[list[torch.Tensor]]:
    """For each group, a float64 tensor of token log-probs for each response."""
    layout, _ = admit(scorer, "auto")
    with display.stage(f"score {name}", len(groups)) as stage:
        return score_tokens(partial(logps, scorer), groups, scorer.device, Budget(layout, SLOTS), stage.advance)


def rows(
    found: Sequence[Scored], marks: dict[str, Mark], tokenizer: Any, with_tokens: bool
) -> Iterator[dict[str, Any]]:
    """The lines of scores.jsonl."""
    judged = ((one, j) for one in found for j in one.judgements)
    for index, (one, j) in enumerate(judged):
        row: dict[str, Any] = {"index": index, "origin": one.origin, **marks.get(one.origin, Mark()).known()}
        tokens = one.tokens
        sides = (("chosen", j.better), ("rejected", j.worse))
        if tokens:
            for name, sums in (("policy", tokens.policy), ("reference", tokens.reference)):
                row |= {f"{name}_{side}_logp": float(sums[place].sum()) for side, place in sides}
        row |= {f"reward_{side}": one.rewards[place] for side, place in sides}
        row["margin"] = one.rewards[j.better] - one.rewards[j.worse]
        if tokens:
            row |= {f"{side}_tokens": len(tokens.group.response_ids[place]) for side, place in sides}
        if tokens and with_tokens:
            for side, place in sides:
                row[f"{side}_token_strings"] = tokens.strings(place, tokenizer)
                row[f"{side}_token_rewards"] = tokens.rewards[place].tolist()
        yield row


def pages_of(found: Sequence[Scored], tokenizer: Any) -> tuple[list[ShadedPair], list[ShadedPair]]:
    """The first judgements and the most wrong ones, as the page shows them."""
    judged = [(one, j) for one in found for j in one.judgements]

    def shaded(place: int) -> ShadedPair:
        one, j = judged[place]
        assert one.tokens
        prompt = tokenizer.decode(one.tokens.group.prompt_ids.tolist())
        sides = [
            tuple(zip(one.tokens.strings(side, tokenizer), one.tokens.rewards[side].tolist(), strict=True))
            for side in (j.better, j.worse)
        ]
        return ShadedPair(one.origin, prompt, sides[0], sides[1])

    first, worst = pairs_to_show([one.rewards[j.better] - one.rewards[j.worse] for one, j in judged])
    return [shaded(place) for place in first], [shaded(place) for place in worst]
