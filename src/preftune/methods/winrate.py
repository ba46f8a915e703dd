"""preftune eval winrate: how often a judge prefers a policy's responses, over sampling temperatures.

Against the responses that the data prefer, or against another model; `best:N,MODEL,REWARD` is the best of n answers of
one model. Samples and verdicts are kept as they come, so nothing is paid for twice: the same command goes on where it
stopped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.data.account import Account
from preftune.data.formats import FORMATS
from preftune.data.groups import read_groups
from preftune.data.prompts import ANSWERS, LOOKED_AT, read_prompts
from preftune.data.read import read
from preftune.errors import ConfigError, DataError, IncompleteError, require_writable
from preftune.evaluate import grades
from preftune.evaluate.grades import Estimate
from preftune.evaluate.judges import (
    INSTRUCTIONS,
    VERSION,
    Judge,
    Question,
    open_judge,
    server_judge,
    shortened,
    tokens_of,
)
from preftune.evaluate.rewards import Answer, Reward, open_reward
from preftune.evaluate.server import Server
from preftune.evaluate.winrate import Match, WinRate, sides, win_rate
from preftune.files import Journal, digest, write_json, write_rows
from preftune.methods import samples
from preftune.methods.pairs import read_samples, score
from preftune.methods.policies import weights_of
from preftune.methods.prepare import device_of
from preftune.methods.samples import Wanted
from preftune.model.generate import Sampling
from preftune.report.figures import curves
from preftune.report.page import Section, write_page
from preftune.train.display import Display
from preftune.types import PreferenceGroup, Text, as_json, content, plain


@dataclass(frozen=True, slots=True)
class Contest:
    """Who is judged against whom, by whom, on what. `against` None: the responses that the data prefer."""

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
    server: Server | None = None
    price_in: float = 0.0
    price_out: float = 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Our response and the other one to a prompt."""

    group: PreferenceGroup
    ours: str
    other: str


def run(contest: Contest, out: Path, display: Display, dry_run: bool = False) -> dict[str, dict[str, WinRate]]:
    """Write winrate.json and winrate.html below `out`; the win rates by policy and temperature."""
    if contest.task not in INSTRUCTIONS:
        raise ConfigError(f"unknown task {contest.task!r}", where="--task", fix=f"one of {', '.join(INSTRUCTIONS)}")
    require_writable(out)
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
    verdicts = Verdicts(out / "verdicts.jsonl", contest)
    found: dict[str, dict[str, WinRate]] = {}
    for policy in contest.policies:
        found[policy] = {}
        writer = writer_of(policy)
        for temperature in contest.temperatures:
            ours = sampled(contest, writer, temperature, prompts, out, display)
            theirs = others(contest, temperature, groups, prompts, out, display)
            both = ours.keys() & theirs.keys()
            pairs = [Pair(g, ours[g.prompt], theirs[g.prompt]) for g in groups if g.prompt in both]
            if len(pairs) < len(groups):
                display.say(f"{len(groups) - len(pairs)} prompts are too long to be answered and are left out")
            matches = require_read(judged(pairs, judge, verdicts, display), verdicts)
            found[policy][f"{temperature:g}"] = win_rate(matches, contest.seed)
            display.say(in_words(policy, temperature, found[policy][f"{temperature:g}"]))
    try:
        human = agreement(labelled, judge, verdicts, display)
    except IncompleteError:
        write(contest, out, found, None, verdicts)  # what is known stands
        raise
    write(contest, out, found, human, verdicts)
    display.say(f"done: {out / 'winrate.json'}, {out / 'winrate.html'}")
    return found


def judged_groups(contest: Contest) -> tuple[list[PreferenceGroup], list[PreferenceGroup], Account]:
    """One group a prompt, with a preferred response unless a model is the other side; all rows of these prompts."""
    if contest.against is not None and only_prompts(contest.data):
        prompts, account = read_prompts(contest.data)
        account.check(1.0)
        return prompts[: contest.max_prompts], [], account
    groups, account = read_groups(contest.data)
    account.check(1.0)
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
    taken = {group.prompt for group in first}
    return first, [group for group in groups if group.prompt in taken], account


def only_prompts(source: str) -> bool:
    """Whether the first rows have prompts, and nothing that any format of data would read as a response."""
    head = [row.value for row in islice(read(source), LOOKED_AT) if not row.fault]
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
    if not name.startswith("best:"):
        return Writer(name, name)
    n, _, rest = name.removeprefix("best:").partition(",")
    model, _, reward = rest.partition(",")
    if not (n.isdigit() and int(n) > 1 and model and reward):
        raise ConfigError(
            f"{name!r} is no best of n", where="--policy", fix="best:16,MODEL,REWARD with a number above 1 in front"
        )
    return Writer(name, model, int(n), open_reward(reward, "--policy", device=device_of(None)))


def sampled(
    contest: Contest, writer: Writer, temperature: float, prompts: Path, out: Path, display: Display
) -> dict[Text, str]:
    """One response to each prompt; what was sampled is kept on disk."""
    name, path = hashlib.sha256(writer.name.encode()).hexdigest()[:8], Path(writer.model)
    short = path.parent.name if path.name == "final" else path.name
    file = out / f"{short}-{name}-T{temperature:g}.jsonl"
    sampling = Sampling(writer.n, contest.max_new_tokens, temperature, seed=contest.seed)
    wanted = Wanted(writer.model, str(prompts), sampling, dtype=contest.dtype, chat_template=contest.chat_template)
    rows = read_samples(str(samples.run(wanted, file, display)), Account(str(file)))
    if writer.reward is None:
        return {row.prompt: row.texts[0] for row in rows}
    scored = score(rows, writer.reward, display)
    return {row.prompt: max(zip(row.texts, row.scores, strict=True), key=lambda pair: pair[1])[0] for row in scored}


def others(
    contest: Contest, temperature: float, groups: Sequence[PreferenceGroup], prompts: Path, out: Path, display: Display
) -> dict[Text, str]:
    """What the policy is compared with, by prompt."""
    if contest.against is None:
        return {group.prompt: preferred(group) for group in groups}
    return sampled(contest, writer_of(contest.against), temperature, prompts, out, display)


class Verdicts:
    """All verdicts so far, by judge and question; each is on disk before it is used.

    Replies that could not be read are on disk too, to be looked at, but the next command asks for them again.
    `unreadable` is the last of them.
    """

    def __init__(self, path: Path, contest: Contest) -> None:
        self.path = path
        server = f"{contest.server.url} {contest.server.model}" if contest.server else judge_of(contest.judge)
        self.judge = f"{VERSION} {server} {contest.task} {contest.seed}"
        with Journal(path) as journal:
            read = {row["key"]: row["verdict"] for row in journal.rows if row["verdict"] is not None}
        self.found: dict[str, float | None] = read
        self.unreadable = ""

    def key(self, question: Question) -> str:
        return hashlib.sha256(f"{self.judge} {question.key}".encode()).hexdigest()

    def ask(
        self, judge: Judge, questions: Sequence[Question], display: Display, what: str = "judge"
    ) -> list[float | None]:
        """The verdicts; the judge is asked for those that are not known."""
        lacking = [q for q in {self.key(q): q for q in questions}.values() if self.key(q) not in self.found]
        with display.stage(what, len(lacking)) as stage, Journal(self.path) as journal:
            for done, (number, verdict, said) in enumerate(judge(lacking), start=1):
                key = self.key(lacking[number])
                journal.add({"key": key, "verdict": verdict, "said": said, "origin": lacking[number].origin})
                self.found[key] = verdict
                if verdict is None:
                    self.unreadable = said
                stage.advance(done)
        return [self.found[self.key(q)] for q in questions]


def judge_of(name: str) -> str:
    """A judge's name with a hash of the models and files it stands for: its verdicts are good for these alone."""
    parts = [path for part in re.split("[:,]", name) if (path := Path(part).expanduser()).exists()]
    return " ".join([name, *(digest(path) if path.is_file() else weights_of(str(path)) for path in parts)])


def judged(
    pairs: Sequence[Pair], judge: Judge, verdicts: Verdicts, display: Display, what: str = "judge"
) -> list[Match]:
    """Every pair in both orders."""
    forward = [Question(p.group.prompt, p.ours, p.other, p.group.origin) for p in pairs]
    backward = [Question(p.group.prompt, p.other, p.ours, p.group.origin) for p in pairs]
    found = verdicts.ask(judge, [*forward, *backward], display, what)
    return [
        Match(first, None if second is None else 1 - second, len(pair.ours.split()), len(pair.other.split()))
        for pair, first, second in zip(pairs, found[: len(pairs)], found[len(pairs) :], strict=True)
    ]


def require_read(matches: Sequence[Match], verdicts: Verdicts) -> Sequence[Match]:
    """The matches. Raises IncompleteError if not one verdict could be read."""
    if all(match.outcome is None for match in matches):
        raise IncompleteError(
            f"not one of {2 * len(matches)} verdicts could be read",
            where=str(verdicts.path),
            why=f"the judge said, for one: {shortened(verdicts.unreadable)}",
            fix="the same command asks again; take another model or name of --judge if it cannot end its reply with a "
            "line VERDICT: A, B or TIE",
        )
    return matches


def labels_of(groups: Sequence[PreferenceGroup]) -> tuple[list[Pair], int]:
    """The data's own pairs, the better response first, and how many of its labels are ties."""
    both = [(g, sides(j)) for g in groups for j in g.judgements]
    pairs = [Pair(g, content(g.responses[s[0]]), content(g.responses[s[1]])) for g, s in both if s]
    return pairs, len(both) - len(pairs)


def agreement(
    groups: Sequence[PreferenceGroup], judge: Judge, verdicts: Verdicts, display: Display
) -> dict[str, float] | None:
    """How often the judge sides with the labels of the data; a tie of the judge or of a label counts one half."""
    pairs, ties = labels_of(groups)
    if not pairs:
        return None
    matches = require_read(judged(pairs, judge, verdicts, display, "judge the data's pairs"), verdicts)
    found = win_rate([*matches, *[Match(0.5, 0.5, 0, 0)] * ties])
    display.say(
        f"the judge sides with the data's labels in {found.rate:.1%} ({found.low:.1%} to {found.high:.1%}) of "
        f"{len(pairs) + ties} judgements; {found.unread} unread"
    )
    known = {"agreement": found.rate, "low": found.low, "high": found.high}
    return {**known, "pairs": len(pairs) + ties, "tied_labels": ties, "unread": found.unread}


def estimate(
    contest: Contest, groups: Sequence[PreferenceGroup], labelled: Sequence[PreferenceGroup], display: Display
) -> None:
    """What asking servers will take, before a token is spent. Responses to be sampled are taken to be the longest."""
    times = len(contest.temperatures)
    found: dict[str, Estimate | None] = {}
    for name in dict.fromkeys([*contest.policies, *([contest.against] if contest.against else [])]):
        if name.startswith("best:") and ",judge:" in name:
            writer = writer_of(name)
            texts = stand_ins(contest, writer.n * times)
            found[name] = grades.estimate(writer.reward, (Answer(g.prompt, text) for g in groups for text in texts))
    if contest.server:
        found["judge"] = verdicts_wanted(contest, groups, labelled)
    elif contest.judge.startswith("judge:"):
        found["judge"] = grades.estimate(open_reward(contest.judge, "--judge"), answers(contest, groups, labelled))
    for name, wanted in found.items():
        if wanted:
            display.say(f"{name}: {wanted.in_words(contest.price_in, contest.price_out)}")


def stand_ins(contest: Contest, number: int) -> list[str]:
    """Different texts of four characters a token, as long as a response may be."""
    return [str(i).rjust(4 * contest.max_new_tokens, "x") for i in range(number)]


def verdicts_wanted(
    contest: Contest, groups: Sequence[PreferenceGroup], labelled: Sequence[PreferenceGroup]
) -> Estimate:
    """Every match and every label in both orders."""
    (ours,) = stand_ins(contest, 1)
    matches = [Question(g.prompt, ours, ours if contest.against else preferred(g)) for g in groups]
    labels = [Question(p.group.prompt, p.ours, p.other) for p in labels_of(labelled)[0]]
    rounds = len(contest.policies) * len(contest.temperatures)
    sums = [(2 * rounds, *tokens_of(matches, contest.task)), (2, *tokens_of(labels, contest.task))]
    requests = 2 * (rounds * len(matches) + len(labels))
    return Estimate(requests, sum(n * read for n, read, _ in sums), sum(n * written for n, _, written in sums))


def answers(
    contest: Contest, groups: Sequence[PreferenceGroup], labelled: Sequence[PreferenceGroup]
) -> Iterator[Answer]:
    """Every response that will be judged."""
    writers = len(contest.policies) + (contest.against is not None)
    texts = stand_ins(contest, writers * len(contest.temperatures))
    for group in groups:
        yield from (Answer(group.prompt, text) for text in texts)
        if contest.against is None:
            yield Answer(group.prompt, preferred(group))
    for pair in labels_of(labelled)[0]:
        yield Answer(pair.group.prompt, pair.ours)
        yield Answer(pair.group.prompt, pair.other)


def in_words(policy: str, temperature: float, rate: WinRate) -> str:
    """One line of the result."""
    return (
        f"{policy} at T {temperature:g}: wins {rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%}), "
        f"length-controlled {rate.length_controlled:.1%} ({rate.length_low:.1%} to {rate.length_high:.1%}); "
        f"{rate.wins} won, {rate.ties} tied, {rate.losses} lost, "
        f"{rate.unread} unread; the first shown wins {rate.first_shown:.1%}"
    )


def write(
    contest: Contest,
    out: Path,
    found: dict[str, dict[str, WinRate]],
    human: dict[str, float] | None,
    verdicts: Verdicts,
) -> None:
    """The numbers and the picture."""
    settings = {key: value for key, value in plain(contest).items() if key != "server"}
    settings["server"] = {"url": contest.server.url, "model": contest.server.model} if contest.server else None
    rates = {policy: {t: asdict(rate) for t, rate in by.items()} for policy, by in found.items()}
    write_json(
        out / "winrate.json",
        {"settings": settings, "judge": verdicts.judge, "win_rates": rates, "agreement_with_labels": human},
    )
    lines = {policy: [(float(t), rate.rate) for t, rate in by.items()] for policy, by in found.items()}
    heads = [
        "policy",
        "temperature",
        "win rate",
        "95 %",
        "length-controlled",
        "won, tied, lost",
        "unread",
        "first shown wins",
        "words",
    ]
    cells: list[list[Any]] = [
        [
            policy,
            t,
            f"{r.rate:.1%}",
            f"{r.low:.1%} to {r.high:.1%}",
            f"{r.length_controlled:.1%} ({r.length_low:.1%} to {r.length_high:.1%})",
            f"{r.wins}, {r.ties}, {r.losses}",
            str(r.unread),
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
        table = [["the judge sides with the label", "95 %", "labels", "of them ties", "unread"], [*rate, *counts]]
        sections.append(Section("Agreement with the labels of the data", "A tie counts one half.", table))
    write_page(out / "winrate.html", "Win rates", sections)
