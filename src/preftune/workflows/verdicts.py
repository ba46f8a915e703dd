"""A judge's verdicts on pairs, saved as they arrive, and its agreement with the labels of the data."""

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
    """Our response and the other one to the same prompt."""

    group: PreferenceGroup
    ours: str
    other: str


class Verdicts:
    """All verdicts so far, by judge and question. Each is written to disk before it is used.

    Unreadable replies are also written, so that they can be inspected, but the next command requests them again.
    `unread` counts them by reason; `unreadable` is the last one.
    """

    def __init__(self, path: Path, judge: str) -> None:
        self.path = path
        self.judge = f"{VERSION} {judge}"
        with Journal(path) as journal:
            read = {row["key"]: row["verdict"] for row in journal.rows if row["verdict"] is not None}
        self.by_key: dict[str, float | None] = read
        self.unreadable, self.unread = "", Counter[str]()

    def key(self, question: Question) -> str:
        """Return the key of a question to this judge."""
        return hashlib.sha256(f"{self.judge} {question.key}".encode()).hexdigest()

    def ask(
        self, judge: Judge, questions: Sequence[Question], display: Display, what: str = "judge"
    ) -> list[float | None]:
        """Return the verdicts. Only questions without a saved verdict are put to the judge."""
        missing = [q for q in {self.key(q): q for q in questions}.values() if self.key(q) not in self.by_key]
        with display.stage(what, len(missing)) as stage, Journal(self.path) as journal:
            for done, (number, verdict, reply) in enumerate(judge(missing), start=1):
                key = self.key(missing[number])
                journal.add({"key": key, "verdict": verdict, "said": reply, "origin": missing[number].origin})
                self.by_key[key] = verdict
                if verdict is None:
                    self.unreadable = self.unreadable if reply.startswith(REFUSED_MESSAGE) else reply
                    self.unread[unreadable_reason(reply)] += 1
                stage.advance(done)
        return [self.by_key[self.key(q)] for q in questions]

    def why_unread(self) -> str:
        """Return the most frequent reasons with their counts."""
        return "; ".join(f"{number}: {why}" for why, number in self.unread.most_common(3))


def collect_verdicts(
    pairs: Sequence[Pair], judge: Judge, verdicts: Verdicts, display: Display, what: str = "judge"
) -> list[Match]:
    """Judge every pair in both orders."""
    forward = [Question(p.group.prompt, p.ours, p.other, p.group.origin) for p in pairs]
    backward = [Question(p.group.prompt, p.other, p.ours, p.group.origin) for p in pairs]
    values = verdicts.ask(judge, [*forward, *backward], display, what)
    return [
        Match(first, None if second is None else 1 - second, words(pair.ours), words(pair.other))
        for pair, first, second in zip(pairs, values[: len(pairs)], values[len(pairs) :], strict=True)
    ]


#: A character of Chinese or Japanese, which are written without spaces, or a run of other characters.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3000-\u30ff\u3400-\u9fff\uff00-\uff65]+")


def words(text: str) -> int:
    """Return the length of a text in words, for the length adjustment."""
    return len(WORD.findall(text))


def require_readable(matches: Sequence[Match], verdicts: Verdicts) -> Sequence[Match]:
    """Return the matches. Raises ConfigError if every request was refused, IncompleteError if no reply was readable."""
    if all(match.outcome is None for match in matches):
        number = 2 * len(matches)
        if all(why.startswith(REFUSED_MESSAGE) for why in verdicts.unread):
            raise ConfigError(
                f"the server refused all {number} requests",
                where=str(verdicts.path),
                why=verdicts.why_unread(),
                fix="remove a setting that the model does not accept by setting it to null: --server-settings",
            )
        raise IncompleteError(
            f"none of {number} verdicts could be read",
            where=str(verdicts.path),
            why=f"{verdicts.why_unread()}; the judge's last reply ended with: {end_of(verdicts.unreadable)}",
            fix="rerun the same command to retry. If the judge cannot end its reply with a line VERDICT: A, B or TIE, "
            "choose a different --judge",
        )
    return matches


def labels_of(groups: Sequence[PreferenceGroup]) -> tuple[list[Pair], int]:
    """Return the labelled pairs of the data, the better response first, and the number of tied labels."""
    labels = [(g, sides(j)) for g in groups for j in g.judgements]
    pairs = [Pair(g, content(g.responses[s[0]]), content(g.responses[s[1]])) for g, s in labels if s]
    return pairs, len(labels) - len(pairs)


def agreement(
    groups: Sequence[PreferenceGroup], judge: Judge, verdicts: Verdicts, display: Display
) -> dict[str, float] | None:
    """Return how often the judge agrees with the labels of the data. A tie of the judge or label counts as one half."""
    pairs, ties = labels_of(groups)
    if not pairs:
        return None
    matches = require_readable(collect_verdicts(pairs, judge, verdicts, display, "judge the data's pairs"), verdicts)
    rate = win_rate([*matches, *[Match(0.5, 0.5, 0, 0)] * ties])
    display.say(
        f"the judge agrees with {rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%}) of the data's labels: "
        f"{rate.wins + rate.ties + rate.losses} of {rate.matches} judged, "
        f"{rate.unread} of {2 * rate.matches} verdicts unread"
    )
    if uninformative := why_uninformative(matches):
        display.say(f"the judge on the data's pairs: {uninformative}")
    shares = {"agreement": rate.rate, "low": rate.low, "high": rate.high}
    return {**shares, "pairs": len(pairs) + ties, "tied_labels": ties, "unread": rate.unread}
