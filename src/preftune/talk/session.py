"""A chat: the state of the dialogue, and what each command does with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from preftune.errors import ConfigError
from preftune.model.generate import Sampling
from preftune.talk.commands import Command, help_text, parse
from preftune.talk.dialogue import SIDES, Answer, Dialogue, Turn
from preftune.talk.files import Pairs, pair_of, paths_of, save
from preftune.talk.screen import Screen, Start, statistics
from preftune.talk.settings import change, described
from preftune.talk.speakers import Fitted, Partner, answer, fit, limited


@dataclass
class Session:
    """The state of a chat. `say` prints lines about the chat, as opposed to answers.

    pairs      the preference file; None without one
    ties       the number of turns whose answers were marked as equally good
    dropped    the number of oldest turns that the last prompt left out
    noted      notes about prompts that were printed
    """

    speakers: list[Partner]
    dialogue: Dialogue
    sampling: Sampling
    screen: Screen
    say: Callable[[str], None]
    pairs: Pairs | None = None
    ties: int = 0
    dropped: int = 0
    noted: set[str] = field(default_factory=set)
    saved: set[Path] = field(default_factory=set)

    def handle(self, line: str) -> bool:
        """Answer a message, or carry out a command. Return False if the chat ends. Raises PreftuneError."""
        entry = parse(line)
        if isinstance(entry, str):
            self.dialogue = self.dialogue.with_turn(self._answered(entry, 0))
            return True
        if entry.name == "/quit":
            return False
        actions: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self.say(help_text()),
            "/set": self._set,
            "/system": self._system,
            "/retry": self._retry,
            "/undo": self._undo,
            "/clear": self._clear,
            "/better": self._better,
            "/prefs": self._prefs,
            "/save": self._save,
        }
        _require_text(entry)
        actions[entry.name](entry.text)
        return True

    def summary(self) -> str:
        """Return what was written to the preference file; "" if nothing was marked."""
        if not self.pairs or not (self.pairs.rows or self.ties):
            return ""
        ties, number = f", {self.ties} ties without a pair" if self.ties else "", len(self.pairs.rows)
        return f"{number} pair{'' if number == 1 else 's'} added to {self.pairs.path}{ties}"

    def _answered(self, text: str, attempt: int) -> Turn:
        """Return a turn with answers to `text` after the dialogue."""
        dialogue = self.dialogue
        fitted = fit(self.speakers, partial(dialogue.prompt, text), len(dialogue.turns), self.sampling.max_new_tokens)
        self._report(fitted)
        sampling = limited(self.sampling, fitted)
        number = len(self.speakers)
        starts: list[Start] = [
            partial(answer, speaker, fitted.prompt, ids, sampling, attempt * number + side)
            for side, (speaker, ids) in enumerate(zip(self.speakers, fitted.ids, strict=True))
        ]
        answers = self.screen.show(starts)
        self._report_speed(answers, sampling.max_new_tokens)
        return Turn(text, fitted.prompt, tuple(answers), attempt=attempt)

    def _report(self, fitted: Fitted) -> None:
        """Print what was changed in the prompt, once for each change."""
        for note in fitted.notes:
            if note not in self.noted and not self.dialogue.plain:
                self.say(f"note: {note}")
        self.noted.update(fitted.notes)
        if fitted.dropped > self.dropped:
            limit = min(speaker.limit for speaker in self.speakers if speaker.limit)
            self.say(
                f"note: the oldest {fitted.dropped} of {len(self.dialogue.turns)} turns are left out of the prompt: "
                f"the model's context has {limit} tokens, of which {fitted.room} are for the answer"
            )
        self.dropped = fitted.dropped

    def _report_speed(self, answers: list[Answer], limit: int) -> None:
        lines = [statistics(answer, limit) for answer in answers]
        if len(lines) == 2:
            lines = [f"{side}: {line}" for side, line in zip(SIDES, lines, strict=True)]
        self.say(f"[{' | '.join(lines)}]")

    def _last(self, where: str) -> Turn:
        if not self.dialogue.turns:
            raise ConfigError("the dialogue is empty", where=where, fix="send a message first")
        return self.dialogue.turns[-1]

    def _set(self, text: str) -> None:
        if text:
            self.sampling = change(self.sampling, text)
        self.say(described(self.sampling))

    def _system(self, text: str) -> None:
        if self.dialogue.plain:
            what = "a text without chat messages has no system message"
            raise ConfigError(what, where="/system", fix="start the chat with --template dialogue")
        if text:
            system = "" if text == "none" else text
            changed = replace(self.dialogue, system=system)
            fit(self.speakers, partial(changed.prompt, "Hello"), len(changed.turns), 1)  # the template may refuse it
            self.dialogue = changed
        self.say(f"system message: {self.dialogue.system or 'none'}")

    def _retry(self, _: str) -> None:
        last, whole = self._last("/retry"), self.dialogue
        if self.sampling.temperature == 0:
            what = "at temperature 0, the answer would be the same"
            raise ConfigError(what, where="/retry", fix="raise it first: /set temperature 0.7")
        self.dialogue = whole.without_last()
        try:
            turn = self._answered(last.text, last.attempt + 1)
        except BaseException:
            self.dialogue = whole
            raise
        self.dialogue = self.dialogue.with_turn(turn)

    def _undo(self, _: str) -> None:
        last = self._last("/undo")
        self.dialogue = self.dialogue.without_last()
        kept = "; its preference pair stays in the file" if self.pairs and last.verdict in SIDES else ""
        self.say(f"removed: {_shortened(last.text)}{kept}")

    def _clear(self, _: str) -> None:
        self.dialogue, self.dropped = replace(self.dialogue, turns=()), 0
        self.say("new dialogue")

    def _prefs(self, text: str) -> None:
        if text:
            self.pairs = Pairs.open(text)
        self.say(f"preference file: {self.pairs.path if self.pairs else 'none'}")

    def _better(self, text: str) -> None:
        if len(self.speakers) < 2:
            what = "there is only one answer"
            raise ConfigError(what, where="/better", fix="start the chat with --beside MODEL, which can be the same")
        if text not in (*SIDES, "tie"):
            raise ConfigError(f"{text!r} is not left, right or tie", where="/better", fix="write /better left")
        turn = self._last("/better")
        side = SIDES.index(text) if text in SIDES else turn.chosen
        row = pair_of(turn, side) if text in SIDES else None
        message = self._record(turn, text, row)
        self.dialogue = self.dialogue.with_last(replace(turn, chosen=side, verdict=text))
        self.say(f"{message}; the dialogue continues with the {SIDES[side]} answer")

    def _record(self, turn: Turn, verdict: str, row: dict[str, object] | None) -> str:
        """Write the pair of a turn, in place of an earlier verdict on it. Return what was done."""
        rows = self.pairs.rows if self.pairs else []
        if turn.verdict == verdict and (row is None or self.pairs is None or row in rows):
            return f"{verdict} was marked before"
        earlier = pair_of(turn, SIDES.index(turn.verdict)) if turn.verdict in SIDES else None
        if self.pairs and earlier in rows and not self.pairs.take_back(earlier):
            what = "the earlier pair cannot be removed: it is not the last one, or the file has changed"
            raise ConfigError(what, where=str(self.pairs.path), fix="remove its line from the file")
        self.ties += (verdict == "tie") - (turn.verdict == "tie")
        if row is None:
            return "tie: no pair was written, because a pair needs a better answer"
        if self.pairs is None:
            return f"{verdict} is better; not saved, because there is no preference file (/prefs FILE)"
        self.pairs.add(row)
        cut = [SIDES[i] for i, answer in enumerate(turn.answers) if not answer.ended]
        note = f" (the {' and '.join(cut)} answer is cut off, and training treats it as complete)" if cut else ""
        return f"{verdict} is better: pair {len(self.pairs.rows)} added to {self.pairs.path}{note}"

    def _save(self, text: str) -> None:
        self._last("/save")
        paths = paths_of(text)
        for path in paths:
            if path.exists() and path not in self.saved:
                raise ConfigError("the file exists", where=str(path), fix="choose a different name")
        for path in paths:
            save(self.dialogue, [speaker.name for speaker in self.speakers], described(self.sampling), path)
            self.saved.add(path)
        self.say(f"saved {' and '.join(map(str, paths))}")


def _require_text(entry: Command) -> None:
    """Raise ConfigError for a command without the text that it needs, or with a text that it does not use."""
    if entry.name in ("/save", "/better") and not entry.text:
        example = "/save chat.md" if entry.name == "/save" else "/better left"
        raise ConfigError("the command needs an argument", where=entry.name, fix=f"for example: {example}")
    if entry.name in ("/retry", "/undo", "/clear", "/help") and entry.text:
        what = f"the command does not take an argument, but got {entry.text!r}"
        raise ConfigError(what, where=entry.name, fix=f"write {entry.name} alone")


def _shortened(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
