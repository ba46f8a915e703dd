"""preftune eval winrate: how often a judge prefers a policy's responses, at several sampling temperatures.

The policy is compared with the responses that the data prefer, or with a different model. `best:N,MODEL,REWARD` is the
best of N responses of a model by a reward. Samples and verdicts are saved as they arrive. Rerun the same command to
resume; nothing is requested twice.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from preftune.client import Client
from preftune.config.data import plain_paths
from preftune.config.schema import DataConfig
from preftune.data.prompts import ANSWERS, LOOKED_AT, read_prompts
from preftune.data.read_groups import read_groups
from preftune.errors import ConfigError, DataError, IncompleteError, require_writable
from preftune.files import write_json, write_rows
from preftune.formats.account import Account
from preftune.formats.json_cells import decode_cells
from preftune.formats.names import column_names
from preftune.formats.parsers import Reading
from preftune.formats.registry import FORMATS
from preftune.lifecycle.open_policy import find_policy, reward_fingerprint
from preftune.lifecycle.policy import device_of
from preftune.measures.win_rate import WinRate, sides, win_rate
from preftune.model.generate import Sampling
from preftune.report.figures.words import in_plain_text
from preftune.report.page import write_page
from preftune.report.verdict import chat_command
from preftune.rewards import chat_grades
from preftune.rewards.chat_grades import Estimate
from preftune.rewards.judges import INSTRUCTIONS, Question, messages_for, open_judge, server_judge
from preftune.rewards.open import open_reward
from preftune.rewards.replies import MAX_TOKENS, estimate_tokens
from preftune.rewards.reward import PromptResponse, Reward, note_text_only, why_missing
from preftune.sources.read import read
from preftune.train.display import Display
from preftune.types import PreferenceGroup, Text, as_json, content, plain
from preftune.workflows import sample as samples
from preftune.workflows.data_section import chat_options_of, read_rows, row_reading_of, section_with_rendering_of
from preftune.workflows.pairs import read_samples, score
from preftune.workflows.sample import SampleOptions
from preftune.workflows.verdicts import Pair, Verdicts, agreement, collect_verdicts, labels_of, require_readable
from preftune.workflows.winrate_page import page_of

Groups = Sequence[PreferenceGroup]
PROMPTS = "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class WinRateOptions:
    """The settings of a winrate command.

    data     the section under which the rows are read and the prompts rendered
    against  the other model; None: the responses that the data prefer
    server   the server of the judge; None: the judge runs in this process
    """

    policies: tuple[str, ...]
    data: DataConfig
    judge: str
    against: str | None = None
    temperatures: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    max_new_tokens: int = 128
    max_prompts: int | None = None
    task: str = "general"
    seed: int = 0
    dtype: str = "auto"
    server: Client | None = None
    price_in: float = 0.0
    price_out: float = 0.0


def run(options: WinRateOptions, out: Path, display: Display, dry_run: bool = False) -> dict[str, dict[str, WinRate]]:
    """Write winrate.json and winrate.html to the folder `out`. Return the win rates by policy and temperature."""
    if options.task not in INSTRUCTIONS:
        fix = f"use one of {', '.join(INSTRUCTIONS)}"
        raise ConfigError(f"unknown task {options.task!r}", where="--task", fix=fix)
    require_writable(out)
    against = [("--against", options.against)] if options.against else []
    for option, name in [*(("--policy", policy) for policy in options.policies), *against]:
        find_policy(parse_writer(name, option)[1], option)
    groups, labelled, account = read_judged(options)
    display.say("\n".join(account.lines()))
    judge = (
        server_judge(options.server, options.task)
        if options.server
        else open_judge(options.judge, "--judge", device=device_of(None), seed=options.seed, task=options.task)
    )
    show_estimates(options, groups, labelled, display)
    if dry_run:
        return {}
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / PROMPTS, ({"prompt": as_json(g.prompt)} for g in groups))
    judge_id = options.server.name if options.server else reward_fingerprint(options.judge)
    verdicts = Verdicts(out / "verdicts.jsonl", f"{judge_id} {options.task} {options.seed}")
    rates: dict[str, dict[str, WinRate]] = {}
    left_out: dict[str, dict[str, int]] = {}
    for policy in options.policies:
        rates[policy], left_out[policy] = {}, {}
        writer = writer_of(policy)
        for temperature in options.temperatures:
            pairs = pairs_of(options, writer, temperature, groups, out, display)
            left_out[policy][f"{temperature:g}"] = len(groups) - len(pairs)
            matches = require_readable(collect_verdicts(pairs, judge, verdicts, display), verdicts)
            rates[policy][f"{temperature:g}"] = rate = win_rate(matches, options.seed)
            display.say(describe(policy, temperature, rate))
            if rate.uninformative:
                display.say(f"{policy} at T {temperature:g}: {rate.uninformative}")
    try:
        label_agreement = agreement(labelled, judge, verdicts, display)
    except (IncompleteError, ConfigError):
        write(options, out, rates, left_out, None, verdicts)  # the win rates do not need the labels
        raise
    verdict = write(options, out, rates, left_out, label_agreement, verdicts)
    if verdicts.unread:
        display.say(f"verdicts unread, {verdicts.why_unread()}")
    display.say(f"result: {in_plain_text(verdict)}")
    models = [policy for policy in options.policies if not policy.startswith("best:")]
    chat = f". Next: {chat_command(models[0], options.against)}" if models else ""
    display.say(f"done: {out / 'winrate.json'}, report in {out / 'winrate.html'}{chat}")
    return rates


def pairs_of(
    options: WinRateOptions, writer: Writer, temperature: float, groups: Groups, out: Path, display: Display
) -> list[Pair]:
    """Return a pair for each prompt with a response on both sides. Raises DataError if there is none."""
    ours = sampled(options, writer, temperature, out, display)
    if options.against is None:
        other = {group.prompt: preferred(group) for group in groups}
    else:
        other = sampled(options, writer_of(options.against), temperature, out, display)
    pairs = [Pair(g, ours[g.prompt], other[g.prompt]) for g in groups if g.prompt in ours and g.prompt in other]
    left_out = len(groups) - len(pairs)
    if left_out:
        best = writer.reward or (options.against or "").startswith("best:")
        why = "longer than the model's token limit" + (", or without a response that got a reward" if best else "")
        display.say(f"skipped {left_out} prompt{'s' * (left_out != 1)}: {why}")
    if not pairs:
        raise DataError(
            "no prompt has a response on both sides",
            where=f"{writer.name} at temperature {temperature:g}",
            why="the prompts are too long for the model, or the reward of best:N returned no reward for any response",
            fix="use shorter prompts, or lower --max-new-tokens",
        )
    return pairs


def read_judged(options: WinRateOptions) -> tuple[list[PreferenceGroup], list[PreferenceGroup], Account]:
    """Return the first group of each prompt, and all groups of these prompts, whose judgements count as labels.

    Raises DataError if a group has no preferred response and there is no model to compare with.
    """
    paths = plain_paths(options.data.train, "winrate")
    if options.against is not None and has_only_prompts(paths, row_reading_of(options.data)):
        prompts, account = read_rows(read_prompts, options.data)
        return prompts[: options.max_prompts], [], account
    groups, account = read_rows(read_groups, options.data)
    distinct: dict[Text, PreferenceGroup] = {}
    for group in groups:
        if group.prompt in distinct:
            account.note(
                "the row repeats an earlier prompt: only one response is sampled, but all judgements count as labels",
                group.origin,
            )
        distinct.setdefault(group.prompt, group)
    first = list(distinct.values())[: options.max_prompts]
    if options.against is None:
        for group in first:
            if not group.judgements and len(group.responses) != 1:
                fix = "set --against to a model to compare with"
                raise DataError("the row has no preferred response", where=group.origin, fix=fix)
    note_text_only(groups, account)
    prompts_used = {group.prompt for group in first}
    return first, [group for group in groups if group.prompt in prompts_used], account


def has_only_prompts(source: str | Sequence[str], reading: Reading) -> bool:
    """Return whether the first rows have prompts, and no columns that any data format reads as responses."""
    rows = [row.value for row in islice(decode_cells(read(source), reading), LOOKED_AT) if not row.fault]
    names = column_names(reading.columns, reading.ignore)
    head = [names.rename(row) for row in rows] if reading.format == "auto" else []
    answered = any(ANSWERS & set(row) or any(form.fits(row) for form in FORMATS) for row in head)
    return any("prompt" in row for row in head) and not answered


def preferred(group: PreferenceGroup) -> str:
    """Return the text of a response that won and lost no judgement, else of the first that won, or of the only one.

    Of a response of several messages, only the first one is compared: a sampled response ends where the user answers.
    """
    decided = [better_worse for j in group.judgements if (better_worse := sides(j))]
    losers = {worse for _, worse in decided}
    winners = [better for better, _ in decided] or [j.better for j in group.judgements] or [0]
    response = group.responses[next((i for i in winners if i not in losers), winners[0])]
    return content(response if isinstance(response, str) else response[:1])


@dataclass(frozen=True, slots=True)
class Writer:
    """The source of responses: a model, or the best of its n responses by a reward."""

    name: str
    model: str
    n: int = 1
    reward: Reward | None = None


def writer_of(name: str) -> Writer:
    """Parse `MODEL` or `best:N,MODEL,REWARD` and load the reward. Raises ConfigError for any other form."""
    n, model, reward = parse_writer(name, "--policy")
    return Writer(name, model, n, open_reward(reward, "--policy", device=device_of(None)) if reward else None)


def parse_writer(name: str, where: str) -> tuple[int, str, str]:
    """Return the number of responses, the model and the reward of `MODEL` or `best:N,MODEL,REWARD`."""
    if not name.startswith("best:"):
        return 1, name, ""
    n, _, rest = name.removeprefix("best:").partition(",")
    model, _, reward = rest.partition(",")
    if not (n.isdigit() and int(n) > 1 and model and reward):
        fix = "write best:N,MODEL,REWARD with N above 1, for example best:16,MODEL,REWARD"
        raise ConfigError(f"cannot read {name!r} as best:N,MODEL,REWARD", where=where, fix=fix)
    return int(n), model, reward


def sampled(
    options: WinRateOptions, writer: Writer, temperature: float, out: Path, display: Display
) -> dict[Text, str]:
    """Return a writer's response to each prompt. Samples are saved in `out` and reused."""
    name, path = hashlib.sha256(writer.name.encode()).hexdigest()[:8], Path(writer.model)
    short = path.parent.name if path.name == "final" else path.name
    file = out / f"{short}-{name}-T{temperature:g}.jsonl"
    sampling = Sampling(writer.n, options.max_new_tokens, temperature, seed=options.seed)
    data = section_with_rendering_of(options.data, str(out / PROMPTS))
    sampling_options = SampleOptions(writer.model, data, sampling, dtype=options.dtype)
    rows = read_samples(str(samples.run(sampling_options, file, display)), Account(str(file)))
    if writer.reward is None:
        return {row.prompt: row.texts[0] for row in rows}
    best, scored = {}, score(rows, writer.reward, display)
    missing = sum(map(math.isnan, (value for row in scored for value in row.scores)))
    if missing:
        display.say(f"{writer.name}: {missing} responses got no reward ({why_missing(writer.reward)})")
    for row in scored:
        ranked = sorted((-s, i) for i, s in enumerate(row.scores) if not math.isnan(s))
        if ranked:
            best[row.prompt] = row.texts[ranked[0][1]]
    return best


def show_estimates(options: WinRateOptions, groups: Groups, labelled: Groups, display: Display) -> None:
    """Print how many requests servers will get. Responses not yet sampled count with the maximum length."""
    times = len(options.temperatures)
    estimates: dict[str, Estimate | None] = {}
    for name in dict.fromkeys([*options.policies, options.against or ""]):
        if name.startswith("best:") and ",judge:" in name:
            writer = writer_of(name)
            texts = placeholders(options, writer.n * times)
            estimates[name] = chat_grades.estimate(
                writer.reward, (PromptResponse(g.prompt, text) for g in groups for text in texts)
            )
    if options.server:
        estimates["judge"] = verdict_estimate(options, options.server, groups, labelled)
    elif options.judge.startswith("judge:"):
        reward = open_reward(options.judge, "--judge")
        estimates["judge"] = chat_grades.estimate(reward, judged_responses(options, groups, labelled))
    for name, estimate in estimates.items():
        if estimate:
            display.say(f"{name}: {estimate.describe(options.price_in, options.price_out)}")


def placeholders(options: WinRateOptions, number: int) -> list[str]:
    """Return different texts of the maximum length of a response, at four characters per token."""
    return [str(i).rjust(4 * options.max_new_tokens, "x") for i in range(number)]


def verdict_estimate(options: WinRateOptions, server: Client, groups: Groups, labelled: Groups) -> Estimate:
    """Estimate the requests for all matches and all labels, each in both orders."""
    (ours,) = placeholders(options, 1)
    matches = [Question(g.prompt, ours, ours if options.against else preferred(g)) for g in groups]
    labels = [Question(p.group.prompt, p.ours, p.other) for p in labels_of(labelled)[0]]
    rounds = len(options.policies) * len(options.temperatures)
    match_tokens = estimate_tokens(messages_for(question, options.task) for question in matches)
    label_tokens = estimate_tokens(messages_for(question, options.task) for question in labels)
    requests = 2 * (rounds * len(matches) + len(labels))
    return Estimate(requests, 2 * (rounds * match_tokens + label_tokens), requests * server.max_tokens(MAX_TOKENS))


def judged_responses(options: WinRateOptions, groups: Groups, labelled: Groups) -> Iterator[PromptResponse]:
    """Yield every response that will be judged."""
    writers = len(options.policies) + (options.against is not None)
    texts = placeholders(options, writers * len(options.temperatures))
    for group in groups:
        yield from (PromptResponse(group.prompt, text) for text in texts)
        if options.against is None:
            yield PromptResponse(group.prompt, preferred(group))
    for pair in labels_of(labelled)[0]:
        yield PromptResponse(pair.group.prompt, pair.ours)
        yield PromptResponse(pair.group.prompt, pair.other)


def describe(policy: str, temperature: float, rate: WinRate) -> str:
    """Return one line of the result."""
    return (
        f"{policy} at T {temperature:g}: wins {rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%}), "
        f"length-adjusted {rate.length_adjusted:.1%} "
        f"({rate.length_adjusted_low:.1%} to {rate.length_adjusted_high:.1%}); "
        f"of {rate.matches} matches {rate.wins} won, {rate.ties} tied, {rate.losses} lost, "
        f"{rate.unread} of {2 * rate.matches} verdicts unread; the first shown wins {rate.first_shown:.1%}"
    )


def write(
    options: WinRateOptions,
    out: Path,
    rates: dict[str, dict[str, WinRate]],
    left_out: dict[str, dict[str, int]],
    label_agreement: dict[str, float] | None,
    verdicts: Verdicts,
) -> str:
    """Write winrate.json and winrate.html. Return the verdict of the page."""
    settings = {**plain(options), "data": options.data.train, "chat_template": None}  # see data_settings
    settings["chat"] = asdict(chat_options_of(options.data))
    settings["data_settings"] = options.data.model_dump(mode="json", exclude_unset=True)
    settings["server"] = options.server.record if options.server else None
    by_policy = {policy: {t: asdict(rate) for t, rate in by.items()} for policy, by in rates.items()}
    facts = {"settings": settings, "judge": verdicts.judge, "win_rates": by_policy, "left_out": left_out}
    write_json(out / "winrate.json", {**facts, "agreement_with_labels": label_agreement})
    against = options.against or "the responses that the data prefer"
    page = page_of(options.judge, against, rates, label_agreement)
    write_page(out / "winrate.html", page)
    return page.verdict
