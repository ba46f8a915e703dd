"""The verdicts of people: every one is on disk before it counts, and the journal is all that is needed to resume.

The first line of the journal names the pairs that are judged. Each other line is a verdict or its withdrawal:

    {"pair", "origin", "annotator", "verdict", "left", "seconds", "comment", "time"}

verdict  "first" or "second" (response of the pair in the order of the file), "tie", "skip", or "undo"
left     which response was on the left
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from preftune.errors import RunError, writing
from preftune.files import Journal
from preftune.measures.agreement import Agreement, agreement, cohen_kappa
from preftune.people.pairs import Pair, fingerprint, first_is_left

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FIRST, SECOND, TIE, SKIP, UNDO = "first", "second", "tie", "skip", "undo"
VALUES: Mapping[str, float] = {FIRST: 1.0, SECOND: 0.0, TIE: 0.5}
CHOICES = ("a", "b", TIE, SKIP)
VERSION = 1  # of the journal


class Verdicts:
    """All verdicts so far. Its methods can be called from several threads.

    votes     number of annotators who judge each pair; None: every annotator judges every pair
    repaired  number of bytes of an incomplete last line that were removed from the journal
    changes   counts verdicts and withdrawals since the journal was opened
    """

    def __init__(self, path: Path, pairs: Sequence[Pair], seed: int = 0, votes: int | None = None) -> None:
        self.path, self.seed, self.votes = path, seed, votes
        self.pairs = {pair.key: pair for pair in pairs}
        self.changes = 0
        self._judged: dict[str, dict[str, dict[str, Any]]] = {}  # annotator -> pair -> row, in order of time
        self._lock, self._held = threading.Lock(), contextlib.ExitStack()
        self._held.enter_context(_alone(path))
        try:
            self._journal = self._held.enter_context(Journal(path))
            self.repaired = self._journal.removed
            self._begin(pairs)
        except BaseException:
            self._held.close()
            raise

    def _begin(self, pairs: Sequence[Pair]) -> None:
        """Compare the pairs with those of the journal and take over its verdicts. Raises RunError if they differ."""
        header = {"preftune_label": VERSION, "pairs": len(pairs), "fingerprint": fingerprint(pairs), "seed": self.seed}
        if not self._journal.rows:
            self._journal.add(header)
            self._journal.sync()
            return
        before = self._journal.rows[0]
        if not isinstance(before, dict) or "preftune_label" not in before:
            fix = "choose a different --out"
            raise RunError("the file is not a journal of preftune label", where=str(self.path), fix=fix)
        if before != header:
            raise RunError(
                "the pairs are not those of the first verdict: the file of samples or a setting has changed",
                where=str(self.path),
                why=f"before: {_description(before)}; now: {_description(header)}",
                fix="restore the file and the settings, or choose a different --out to begin again",
            )
        for number, row in enumerate(self._journal.rows[1:], start=2):
            if not _is_verdict(row) or row["pair"] not in self.pairs:
                where, fix = f"{self.path}:{number}", "restore or remove the line"
                raise RunError("the line is not a verdict on one of the pairs", where=where, fix=fix)
            self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        judged = self._judged.setdefault(row["annotator"], {})
        judged.pop(row["pair"], None)
        if row["verdict"] != UNDO:
            judged[row["pair"]] = row

    def _add(self, row: dict[str, Any]) -> None:
        self._journal.add(row)
        self._journal.sync()
        self._take(row)
        self.changes += 1

    def judge(self, annotator: str, pair: str, choice: str, comment: str = "", seconds: float | None = None) -> bool:
        """Save a verdict: which response is better, a (left), b (right), tie or skip. It is on disk on return.

        Returns False, and changes nothing, if the annotator has judged the pair before. Raises StorageError.
        """
        with self._lock:
            if pair in self._judged.get(annotator, {}):
                return False
            left = FIRST if first_is_left(pair, annotator, self.seed) else SECOND
            right = SECOND if left == FIRST else FIRST
            verdict = {"a": left, "b": right}.get(choice, choice)
            row = {"pair": pair, "origin": self.pairs[pair].origin, "annotator": annotator, "verdict": verdict}
            details = {"seconds": seconds, "comment": comment or None, "time": datetime.now().astimezone().isoformat()}
            self._add({**row, "left": left, **{name: value for name, value in details.items() if value is not None}})
            return True

    def undo(self, annotator: str) -> str | None:
        """Withdraw the annotator's last verdict. Return the key of its pair, or None if there is no verdict."""
        with self._lock:
            judged = self._judged.get(annotator)
            if not judged:
                return None
            pair = next(reversed(judged))
            row = {"pair": pair, "origin": self.pairs[pair].origin, "annotator": annotator, "verdict": UNDO}
            self._add({**row, "time": datetime.now().astimezone().isoformat()})
            return pair

    def next_pair(self, annotator: str) -> Pair | None:
        """Return the first pair that this annotator has not judged and that needs more verdicts, or None."""
        with self._lock:
            judged = self._judged.get(annotator, {})
            return next((pair for key, pair in self.pairs.items() if key not in judged and self._needs(key)), None)

    def remaining(self, annotator: str) -> int:
        """Return how many pairs this annotator can still judge."""
        with self._lock:
            judged = self._judged.get(annotator, {})
            return sum(key not in judged and self._needs(key) for key in self.pairs)

    def _needs(self, key: str) -> bool:
        return self.votes is None or sum(key in judged for judged in self._judged.values()) < self.votes

    def missing(self) -> int:
        """Return how many pairs have fewer verdicts than `votes` (None: no verdict). A skip is a verdict here."""
        with self._lock:
            counts = Counter(key for judged in self._judged.values() for key in judged)
            return sum(counts[key] < (self.votes or 1) for key in self.pairs)

    def judged(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the rows of all verdicts that hold now, by annotator and pair."""
        with self._lock:
            return {annotator: dict(rows) for annotator, rows in self._judged.items() if rows}

    def by_pair(self) -> dict[str, list[str]]:
        """Return the verdicts on each pair, without skips."""
        verdicts: dict[str, list[str]] = {key: [] for key in self.pairs}
        for rows in self.judged().values():
            for key, row in rows.items():
                if row["verdict"] in VALUES:
                    verdicts[key].append(row["verdict"])
        return verdicts

    def close(self) -> None:
        """Close the journal, after the verdict that is being saved."""
        with self._lock:
            self._held.close()

    def __enter__(self) -> Verdicts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shared_agreement(verdicts: Verdicts) -> Agreement | None:
    """Return the agreement of all annotators on the pairs that at least two of them judged, without skips."""
    return agreement(list(verdicts.by_pair().values()))


def summary_lines(verdicts: Verdicts) -> list[str]:
    """Describe what each annotator did, and how well they agree."""
    lines, judged = [], verdicts.judged()
    for annotator, rows in judged.items():
        counts = Counter(row["verdict"] for row in rows.values())
        decided = [row for row in rows.values() if row["verdict"] in (FIRST, SECOND)]
        left = sum(row["verdict"] == row["left"] for row in decided)
        lines.append(
            f"{annotator}: {len(rows)} of {len(verdicts.pairs)} pairs judged: {len(decided)} decided "
            f"({left} for A, on the left), {_count(counts[TIE], 'tie')}, {counts[SKIP]} skipped"
        )
    overall = shared_agreement(verdicts)
    if overall is None:
        return [*lines, *(["agreement: the annotators have no pair in common"] if len(judged) > 1 else [])]
    lines.append(
        f"agreement: {overall.raw:.1%} on {_count(overall.items, 'pair')} that two or more annotators judged; "
        f"Krippendorff's alpha {_number(overall.alpha)}"
    )
    for one, other in combinations(judged, 2):
        both = [
            (judged[one][key]["verdict"], judged[other][key]["verdict"])
            for key in judged[one].keys() & judged[other].keys()
            if judged[one][key]["verdict"] in VALUES and judged[other][key]["verdict"] in VALUES
        ]
        if both:
            raw = sum(a == b for a, b in both) / len(both)
            kappa = _number(cohen_kappa(both))
            lines.append(f"  {one} and {other}: {raw:.1%} of {_count(len(both), 'pair')}, Cohen's kappa {kappa}")
    return lines


def _is_verdict(row: Any) -> bool:
    """Return whether a line of the journal is a verdict or its withdrawal."""
    names = ("pair", "annotator", "verdict")
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
        return False
    return row["verdict"] == UNDO or (row["verdict"] in (*VALUES, SKIP) and row.get("left") in (FIRST, SECOND))


def _number(value: float | None) -> str:
    return "undefined (all verdicts are the same)" if value is None else f"{value:.2f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _description(header: Mapping[str, Any]) -> str:
    return f"{header.get('pairs')} pairs, fingerprint {str(header.get('fingerprint'))[:8]}, seed {header.get('seed')}"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock on the file inside this context. Raises RunError if another process holds it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fix = "use the page of that command, or stop it first"
                raise RunError("another preftune command collects these verdicts", where=str(path), fix=fix) from None
        yield
