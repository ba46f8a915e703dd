"""What a judge has said of pairs, kept as it comes, and how often it sides with the labels of the data."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.client import REFUSED_MESSAGE
from preftune.errors import ConfigError, IncompleteError
from preftune.files import Journal
from preftune.measures.win_rate import Match, sides, why_uninformative, win_rate
from preftune.rewards.judges import VERSION, Judge, Question, unreadable_reason
from preftune.rewards.replies import end_of
from preftune.train.display import Display
from preftune.types import PreferenceGroup, content


@dataclass(frozen=True, slots=True)
class Pair:
    """Our response and the other one to a prompt."""

    group: PreferenceGroup
    ours: str
    other: str


class Verdicts:
    """All verdicts so far, by judge and question; each is on disk before it is used.

    Replies that could not be read are on disk too, to be looked at, but the next command asks for them again.
    `unread` counts them by why they are, `unreadable` is the last reply among them.
    """

    def __init__(self, path: Path, judge: str) -> None:
        self.path = path
        self.judge = f"{VERSION} {judge}"
        with Journal(path) as journal:
            read = {row["key"]: row["verdict"] for row in journal.rows if row["verdict"] is not None}
        self.found: dict[str, float | None] = read
        self.unreadable, self.unread = "", Counter[str]()

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
                    self.unreadable = self.unreadable if said.startswith(REFUSED_MESSAGE) else said
                    self.unread[unreadable_reason(said)] += 1
                stage.advance(done)
        return [self.found[self.key(q)] for q in questions]

    def why_unread(self) -> str:
        """In words, with how many there are of each kind."""
        return "; ".join(f"{number}: {why}" for why, number in self.unread.most_common(3))


def judged(
    pairs: Sequence[Pair], judge: Judge, verdicts: Verdicts, display: Display, what: str = "judge"
) -> list[Match]:
    """Every pair in both orders."""
    forward = [Question(p.group.prompt, p.ours, p.other, p.group.origin) for p in pairs]
    backward = [Question(p.group.prompt, p.other, p.ours, p.group.origin) for p in pairs]
    found = verdicts.ask(judge, [*forward, *backward], display, what)
    return [
        Match(first, None if second is None else 1 - second, words(pair.ours), words(pair.other))
        for pair, first, second in zip(pairs, found[: len(pairs)], found[len(pairs) :], strict=True)
    ]


#: A character of Chinese or Japanese script, which puts no spaces between words, or what stands between spaces.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3000-\u30ff\u3400-\u9fff\uff00-\uff65]+")


def words(text: str) -> int:
    """How long a text is, for the control of length."""
    return len(WORD.findall(text))


def require_read(matches: Sequence[Match], verdicts: Verdicts) -> Sequence[Match]:
    """The matches. Raises IncompleteError if not one verdict could be read."""
    if all(match.outcome is None for match in matches):
        if all(why.startswith(REFUSED_MESSAGE) for why in verdicts.unread):
            raise ConfigError(
                f"not one of {2 * len(matches)} questions was taken",
                where=str(verdicts.path),
                why=verdicts.why_unread(),
                fix="leave out with null what the model does not take: --server-settings",
            )
        raise IncompleteError(
            f"not one of {2 * len(matches)} verdicts could be read",
            where=str(verdicts.path),
            why=f"{verdicts.why_unread()}; the judge said at last: {end_of(verdicts.unreadable)}",
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
        f"the judge sides with the data's labels in {found.rate:.1%} ({found.low:.1%} to {found.high:.1%}) of the "
        f"{found.wins + found.ties + found.losses} judgements that it could read, of {found.matches}; "
        f"{found.unread} of {2 * found.matches} verdicts unread"
    )
    empty = why_uninformative(matches)
    if empty:
        display.say(f"the judge on the data's pairs: {empty}")
    known = {"agreement": found.rate, "low": found.low, "high": found.high}
    return {**known, "pairs": len(pairs) + ties, "tied_labels": ties, "unread": found.unread}
