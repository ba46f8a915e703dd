"""Write what a chat produces: the dialogue as messages and as Markdown, and preference pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError, require_writable, writing
from preftune.files import write_rows, write_text
from preftune.talk.dialogue import SIDES, Dialogue, Turn
from preftune.types import Message, as_json

MARKDOWN = (".md", ".markdown")


def paths_of(name: str) -> list[Path]:
    """Return the files that `/save name` writes: by its suffix JSON lines or Markdown, and both without a suffix."""
    path = Path(name).expanduser()
    if path.suffix in (".jsonl", *MARKDOWN):
        return [path]
    return [path.with_name(path.name + suffix) for suffix in (".jsonl", ".md")]


def save(dialogue: Dialogue, names: Sequence[str], settings: str, path: Path) -> None:
    """Write the dialogue to `path`. `names` are the models. Raises StorageError."""
    if path.suffix in MARKDOWN:
        write_text(path, [_markdown(dialogue, names, settings)])
    else:
        write_rows(path, [_row(dialogue)])


def _row(dialogue: Dialogue) -> dict[str, Any]:
    return {"text": dialogue.text()} if dialogue.plain else {"messages": as_json(dialogue.messages())}


def _markdown(dialogue: Dialogue, names: Sequence[str], settings: str) -> str:
    parts = [f"# Chat with {' and '.join(names)}", settings]
    if dialogue.system:
        parts += ["## System", dialogue.system]
    for turn in dialogue.turns:
        parts += ["## User", turn.text]
        for side, (name, answer) in enumerate(zip(names, turn.answers, strict=True)):
            marks = [SIDES[side]] if len(names) > 1 else []
            marks += ["better"] if turn.verdict == SIDES[side] else ["tie"] if turn.verdict == "tie" else []
            marks += [] if answer.ended else ["cut off"]
            parts += [f"## {name}" + (f" ({', '.join(marks)})" if marks else ""), answer.text]
    return "\n\n".join(parts) + "\n"


def pair_of(turn: Turn, better: int) -> dict[str, Any]:
    """Return the preference pair of a turn with two answers. Raises ConfigError if they make no pair."""
    texts = [answer.text for answer in turn.answers]
    empty = [SIDES[side] for side, text in enumerate(texts) if not text.strip()]
    if empty or texts[0] == texts[1]:
        what = f"the {empty[0]} answer is empty" if empty else "both answers are the same"
        raise ConfigError(f"{what}, so no pair was written", where="/better", fix="draw other answers with /retry")
    chosen, rejected = texts[better], texts[1 - better]
    if isinstance(turn.prompt, str):
        return {"prompt": turn.prompt, "chosen": chosen, "rejected": rejected}
    answers = [as_json((Message("assistant", text),)) for text in (chosen, rejected)]
    return {"prompt": as_json(turn.prompt), "chosen": answers[0], "rejected": answers[1]}


@dataclass(slots=True)
class Pairs:
    """The preference file. A verdict on the last pair can be changed until another pair is added.

    rows    the pairs that this chat has added
    _last   where the last pair begins and ends in the file
    """

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    _last: tuple[int, int] | None = None

    @staticmethod
    def open(name: str) -> Pairs:
        """Return the file for new pairs. Raises StorageError if it cannot be written."""
        path = Path(name).expanduser()
        require_writable(path)
        if path.is_dir():
            raise ConfigError("this is a folder", where=str(path), fix="name a file, such as prefs.jsonl")
        return Pairs(path)

    def add(self, row: dict[str, Any]) -> None:
        """Append a pair. It is on disk when this returns."""
        data = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                end = file.seek(0, 2)
                if end:
                    file.seek(end - 1)
                    data = data if file.read(1) == b"\n" else b"\n" + data
                file.write(data)
            self._last = end, end + len(data)
        self.rows.append(row)

    def take_back(self, row: dict[str, Any]) -> bool:
        """Remove a pair. Return False unless it is the one that was added last, and the file has not changed since."""
        if self._last is None or self.rows[-1] != row:
            return False
        if not self.path.is_file() or self.path.stat().st_size != self._last[1]:
            return False
        with writing(self.path), self.path.open("r+b") as file:
            file.truncate(self._last[0])
        self._last = None
        self.rows.pop()
        return True
