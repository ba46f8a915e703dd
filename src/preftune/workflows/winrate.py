"""preftune eval winrate: how often a judge prefers a policy's responses, over sampling temperatures.

Against the responses that the data prefer, or against another model; `best:N,MODEL,REWARD` is the best of n answers of
one model. Samples and verdicts are kept as they come, so nothing is paid for twice: the same command goes on where it
stopped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.chat.open import ChatOptions
from preftune.client import Client
from preftune.config.schema import DataConfig
from preftune.data.groups import read_groups
from preftune.data.prompts import ANSWERS, LOOKED_AT, read_prompts
from preftune.errors import ConfigError, DataError, IncompleteError, require_writable
from preftune.files import write_json, write_rows
from preftune.formats.account import Account
from preftune.formats.cells import decode_cells
from preftune.formats.names import column_names
from preftune.formats.parsers import Reading
from preftune.formats.table import FORMATS
from preftune.lifecycle.policy import device_of
from preftune.lifecycle.saved import find_policy, reward_fingerprint
from preftune.lifecycle.sections import options_of, require_rows, rows_of, section_of
from preftune.measures.win_rate import WinRate, sides, win_rate
from preftune.model.generate import Sampling
from preftune.report.figures import curves
from preftune.report.page import Section, write_page
from preftune.rewards import chat_grades
from preftune.rewards.chat_grades import Estimate
from preftune.rewards.judges import (
    INSTRUCTIONS,
    Question,
    estimate_request_tokens,
    open_judge,
    server_judge,
)
from preftune.rewards.open import open_reward
from preftune.rewards.reward import PromptResponse, Reward, note_text_only, why_missing
from preftune.sources.read import read
from preftune.train.display import Display
from preftune.types import PreferenceGroup, Text, as_json, content, plain
from preftune.workflows import sample as samples
from preftune.workflows.pairs import read_samples, score
from preftune.workflows.sample import SampleOptions
from preftune.workflows.verdicts import Pair, Verdicts, agreement, judged, labels_of, require_read


@dataclass(frozen=True, slots=True)
class WinRateOptions:
    """Who is judged against whom, by whom, on what. `against` None: the responses that the data prefer. `settings` is a
    whole data section; it takes the place of chat_template and chat."""

    policies: tuple[str, ...]
    data: str
    judge: str
    against: str | None = None
    temperatures: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    max_new_tokens: int = 128
    max_prompts: int | None = None
    task: str = "general"
    seed: int = 0
    dtype: str = "auto"
    chat_template: str | None = None
    server: Client | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    chat: ChatOptions = field(default_factory=ChatOptions)
    settings: DataConfig | None = None

    @property
    def section(self) -> DataConfig:
        """The settings under which the rows are read."""
        return section_of(self.data, self.settings, chat_template=self.chat_template)

    @property
    def options(self) -> ChatOptions:
        """How chat is rendered."""
        return options_of(self.settings, self.chat)


def run(contest: WinRateOptions, out: Path, display: Display, dry_run: bool = False) -> dict[str, dict[str, WinRate]]:
    """Write winrate.json and winrate.html below `out`; the win rates by policy and temperature."""
    if contest.task not in INSTRUCTIONS:
        raise ConfigError(f"unknown task {contest.task!r}", where="--task", fix=f"one of {', '.join(INSTRUCTIONS)}")
    require_writable(out)
    require_models(contest)
    groups, labelled, account = judged_groups(contest)
    for line in account.lines():
        display.say(line)
    judge = (
        server_judge(contest.server, contest.task)
        if contest.server
        else open_judge(contest.judge, "--judge", device=device_of(None), seed=contest.seed, task=contest.task)
    )
    estimate(contest, groups, labelled, display)
    if dry_run:
        return {}
    out.mkdir(parents=True, exist_ok=True)
    prompts = out / "prompts.jsonl"
    write_rows(prompts, ({"prompt": as_json(g.prompt)} for g in groups))
    named = contest.server.name if contest.server else reward_fingerprint(contest.judge)
    verdicts = Verdicts(out / "verdicts.jsonl", f"{named} {contest.task} {contest.seed}")
    found: dict[str, dict[str, WinRate]] = {}
    left_out: dict[str, dict[str, int]] = {}
    for policy in contest.policies:
        found[policy], left_out[policy] = {}, {}
        writer = writer_of(policy)
        for temperature in contest.temperatures:
            pairs = pairs_of(contest, policy, writer, temperature, groups, prompts, out, display)
            left_out[policy][f"{temperature:g}"] = len(groups) - len(pairs)
            matches = require_read(judged(pairs, judge, verdicts, display), verdicts)
            found[policy][f"{temperature:g}"] = rate = win_rate(matches, contest.seed)
            display.say(in_words(policy, temperature, rate))
            if rate.uninformative:
                display.say(f"{policy} at T {temperature:g}: {rate.uninformative}")
    try:
        human = agreement(labelled, judge, verdicts, display)
    except (IncompleteError, ConfigError):
        write(contest, out, found, left_out, None, verdicts)  # what is known stands
        raise
    write(contest, out, found, left_out, human, verdicts)
    if verdicts.unread:
        display.say(f"verdicts unread, {verdicts.why_unread()}")
    display.say(f"done: {out / 'winrate.json'}, {out / 'winrate.html'}")
    return found


def require_models(contest: WinRateOptions) -> None:
    """Raises for a contestant that is no model, naming its option."""
    against = [("--against", contest.against)] if contest.against else []
    for option, name in [*(("--policy", policy) for policy in contest.policies), *against]:
        find_policy(parts_of(name, option)[1], option)


def pairs_of(
    contest: WinRateOptions,
    policy: str,
    writer: Writer,
    temperature: float,
    groups: Sequence[PreferenceGroup],
    prompts: Path,
    out: Path,
    display: Display,
) -> list[Pair]:
    """What is judged: the prompts that both sides have answered. Raises DataError if there is none."""
    ours = sampled(contest, writer, temperature, prompts, out, display)
    theirs = others(contest, temperature, groups, prompts, out, display)
    both = ours.keys() & theirs.keys()
    pairs = [Pair(g, ours[g.prompt], theirs[g.prompt]) for g in groups if g.prompt in both]
    lost = len(groups) - len(pairs)
    if lost:
        display.say(f"left out: {lost} prompts, too long to be answered or without an answer that got a reward")
    if not pairs:
        raise DataError(
            "no prompt has a response to be judged",
            where=f"{policy} at temperature {temperature:g}",
            why="the prompts are too long, or the reward of best:N reads none of the answers",
        )
    return pairs


def judged_groups(contest: WinRateOptions) -> tuple[list[PreferenceGroup], list[PreferenceGroup], Account]:
    """One group a prompt, with a preferred response unless a model is the other side; all rows of these prompts."""
    reading = rows_of(contest.section)
    if contest.against is not None and only_prompts(contest.data, reading):
        prompts, account = read_prompts(contest.data, reading)
        require_rows(account, contest.section)
        return prompts[: contest.max_prompts], [], account
    groups, account = read_groups(contest.data, reading)
    require_rows(account, contest.section)
    distinct: dict[Text, PreferenceGroup] = {}
    for group in groups:
        if group.prompt in distinct:
            account.note("the prompt of an earlier row: answered once, its judgements count as labels", group.origin)
        distinct.setdefault(group.prompt, group)
    first = list(distinct.values())[: contest.max_prompts]
    if contest.against is None:
        for group in first:
            if not group.judgements and len(group.responses) != 1:
                raise DataError("no response is preferred", where=group.origin, fix="name a model: --against")
    note_text_only(groups, account)
    taken = {group.prompt for group in first}
    return first, [group for group in groups if group.prompt in taken], account


def only_prompts(source: str, reading: Reading) -> bool:
    """Whether the first rows have prompts, and nothing that any format of data would read as a response."""
    rows = [row.value for row in islice(decode_cells(read(source), reading), LOOKED_AT) if not row.fault]
    names = column_names(reading.columns, reading.ignore)
    head = [names.rename(row) for row in rows] if reading.format == "auto" else []
    answered = any(ANSWERS & set(row) or any(form.fits(row) for form in FORMATS) for row in head)
    return any("prompt" in row for row in head) and not answered


def preferred(group: PreferenceGroup) -> str:
    """The text of a response that won and lost no judgement, else of the first that won one, or of the only one."""
    decided = [both for j in group.judgements if (both := sides(j))]
    lost = {worse for _, worse in decided}
    winners = [better for better, _ in decided] or [j.better for j in group.judgements] or [0]
    return content(group.responses[next((i for i in winners if i not in lost), winners[0])])


@dataclass(frozen=True, slots=True)
class Writer:
    """Who answers: a model, or the best of its n answers by a reward."""

    name: str
    model: str
    n: int = 1
    reward: Reward | None = None


def writer_of(name: str) -> Writer:
    """`MODEL`, or `best:N,MODEL,REWARD`. Raises ConfigError for what is neither."""
    n, model, reward = parts_of(name, "--policy")
    return Writer(name, model, n, open_reward(reward, "--policy", device=device_of(None)) if reward else None)


def parts_of(name: str, where: str) -> tuple[int, str, str]:
    """How many answers, of which model, by which reward."""
    if not name.startswith("best:"):
        return 1, name, ""
    n, _, rest = name.removeprefix("best:").partition(",")
    model, _, reward = rest.partition(",")
    if not (n.isdigit() and int(n) > 1 and model and reward):
        raise ConfigError(
            f"{name!r} is no best of n", where=where, fix="best:16,MODEL,REWARD with a number above 1 in front"
        )
    return int(n), model, reward


def sampled(
    contest: WinRateOptions, writer: Writer, temperature: float, prompts: Path, out: Path, display: Display
) -> dict[Text, str]:
    """One response to each prompt; what was sampled is kept on disk."""
    name, path = hashlib.sha256(writer.name.encode()).hexdigest()[:8], Path(writer.model)
    short = path.parent.name if path.name == "final" else path.name
    file = out / f"{short}-{name}-T{temperature:g}.jsonl"
    sampling = Sampling(writer.n, contest.max_new_tokens, temperature, seed=contest.seed)
    wanted = SampleOptions(
        writer.model,
        str(prompts),
        sampling,
        dtype=contest.dtype,
        chat_template=contest.section.chat_template,
        chat=contest.options,
    )
    rows = read_samples(str(samples.run(wanted, file, display)), Account(str(file)))
    if writer.reward is None:
        return {row.prompt: row.texts[0] for row in rows}
    best, scored = {}, score(rows, writer.reward, display)
    lacking = sum(map(math.isnan, (value for row in scored for value in row.scores)))
    if lacking:
        display.say(f"{writer.name}: {lacking} answers got no reward ({why_missing(writer.reward)})")
    for row in scored:
        ranked = sorted((-s, i) for i, s in enumerate(row.scores) if not math.isnan(s))
        if ranked:
            best[row.prompt] = row.texts[ranked[0][1]]
    return best


def others(
    contest: WinRateOptions,
    temperature: float,
    groups: Sequence[PreferenceGroup],
    prompts: Path,
    out: Path,
    display: Display,
) -> dict[Text, str]:
    """What the policy is compared with, by prompt."""
    if contest.against is None:
        return {group.prompt: preferred(group) for group in groups}
    return sampled(contest, writer_of(contest.against), temperature, prompts, out, display)


def estimate(
    contest: WinRateOptions, groups: Sequence[PreferenceGroup], labelled: Sequence[PreferenceGroup], display: Display
) -> None:
    """What asking servers will take, before a token is spent. Responses to be sampled are taken to be the longest."""
    times = len(contest.temperatures)
    found: dict[str, Estimate | None] = {}
    for name in dict.fromkeys([*contest.policies, *([contest.against] if contest.against else [])]):
        if name.startswith("best:") and ",judge:" in name:
            writer = writer_of(name)
            texts = stand_ins(contest, writer.n * times)
            found[name] = chat_grades.estimate(
                writer.reward, (PromptResponse(g.prompt, text) for g in groups for text in texts)
            )
    if contest.server:
        found["judge"] = verdicts_wanted(contest, contest.server, groups, labelled)
    elif contest.judge.startswith("judge:"):
        found["judge"] = chat_grades.estimate(open_reward(contest.judge, "--judge"), answers(contest, groups, labelled))
    for name, wanted in found.items():
        if wanted:
            display.say(f"{name}: {wanted.describe(contest.price_in, contest.price_out)}")


def stand_ins(contest: WinRateOptions, number: int) -> list[str]:
    """Different texts of four characters a token, as long as a response may be."""
    return [str(i).rjust(4 * contest.max_new_tokens, "x") for i in range(number)]


def verdicts_wanted(
    contest: WinRateOptions, server: Client, groups: Sequence[PreferenceGroup], labelled: Sequence[PreferenceGroup]
) -> Estimate:
    """Every match and every label in both orders."""
    (ours,) = stand_ins(contest, 1)
    matches = [Question(g.prompt, ours, ours if contest.against else preferred(g)) for g in groups]
    labels = [Question(p.group.prompt, p.ours, p.other) for p in labels_of(labelled)[0]]
    rounds = len(contest.policies) * len(contest.temperatures)
    read_written = ((2 * rounds, matches), (2, labels))
    sums = [(n, *estimate_request_tokens(questions, contest.task, server)) for n, questions in read_written]
    requests = 2 * (rounds * len(matches) + len(labels))
    return Estimate(requests, sum(n * read for n, read, _ in sums), sum(n * written for n, _, written in sums))


def answers(
    contest: WinRateOptions, groups: Sequence[PreferenceGroup], labelled: Sequence[PreferenceGroup]
) -> Iterator[PromptResponse]:
    """Every response that will be judged."""
    writers = len(contest.policies) + (contest.against is not None)
    texts = stand_ins(contest, writers * len(contest.temperatures))
    for group in groups:
        yield from (PromptResponse(group.prompt, text) for text in texts)
        if contest.against is None:
            yield PromptResponse(group.prompt, preferred(group))
    for pair in labels_of(labelled)[0]:
        yield PromptResponse(pair.group.prompt, pair.ours)
        yield PromptResponse(pair.group.prompt, pair.other)


def in_words(policy: str, temperature: float, rate: WinRate) -> str:
    """One line of the result."""
    return (
        f"{policy} at T {temperature:g}: wins {rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%}), "
        f"length-adjusted {rate.length_adjusted:.1%} "
        f"({rate.length_adjusted_low:.1%} to {rate.length_adjusted_high:.1%}); "
        f"of {rate.matches} matches {rate.wins} won, {rate.ties} tied, {rate.losses} lost, "
        f"{rate.unread} of {2 * rate.matches} verdicts unread; the first shown wins {rate.first_shown:.1%}"
    )


def write(
    contest: WinRateOptions,
    out: Path,
    found: dict[str, dict[str, WinRate]],
    left_out: dict[str, dict[str, int]],
    human: dict[str, float] | None,
    verdicts: Verdicts,
) -> None:
    """The numbers and the picture."""
    settings = {key: value for key, value in plain(contest).items() if key not in ("server", "settings", "chat")}
    settings["chat"] = asdict(contest.options)
    settings["data_settings"] = contest.section.model_dump(mode="json", exclude_unset=True)
    settings["server"] = contest.server.record if contest.server else None
    rates = {policy: {t: asdict(rate) for t, rate in by.items()} for policy, by in found.items()}
    known = {"settings": settings, "judge": verdicts.judge, "win_rates": rates, "left_out": left_out}
    write_json(out / "winrate.json", {**known, "agreement_with_labels": human})
    lines = {policy: [(float(t), rate.rate) for t, rate in by.items()] for policy, by in found.items()}
    heads = [
        "policy",
        "temperature",
        "win rate",
        "95 %",
        "length-adjusted",
        "won, tied, lost",
        "verdicts unread",
        "first shown wins",
        "words",
    ]
    cells: list[list[Any]] = [
        [
            policy,
            t,
            f"{r.rate:.1%}",
            f"{r.low:.1%} to {r.high:.1%}",
            f"{r.length_adjusted:.1%} ({r.length_adjusted_low:.1%} to {r.length_adjusted_high:.1%})",
            f"{r.wins}, {r.ties}, {r.losses}",
            f"{r.unread} of {2 * r.matches}",
            f"{r.first_shown:.1%}",
            f"{r.words:.0f} against {r.other_words:.0f}",
        ]
        for policy, by in found.items()
        for t, r in by.items()
    ]
    figure = curves("Win rate over temperatures", "win rate", lines, "temperature", ("no preference", 0.5))
    against = contest.against or "the responses that the data prefer"
    sections = [Section("Win rates", f"Judge: {contest.judge}; against {against}.", [heads, *cells], [figure])]
    if human:
        rate = [f"{human['agreement']:.1%}", f"{human['low']:.1%} to {human['high']:.1%}"]
        counts = [f"{human[name]:g}" for name in ("pairs", "tied_labels", "unread")]
        table = [
            ["the judge sides with the label", "95 %", "labels", "of them ties", "verdicts unread"],
            [*rate, *counts],
        ]
        sections.append(Section("Agreement with the labels of the data", "A tie counts one half.", table))
    write_page(out / "winrate.html", "Win rates", sections)
