"""The lines that a user types: messages, messages of several lines, and commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from preftune.errors import ConfigError, did_you_mean

QUOTES = '"""'
COMMANDS = {
    "/help": "show this list",
    "/set": "show the sampling settings, or change one: /set temperature 0.7",
    "/system": "set the system message: /system TEXT; /system none removes it",
    "/retry": "answer the last message again, with different random numbers",
    "/undo": "remove the last message and its answer",
    "/clear": "begin a new dialogue; system message and settings stay",
    "/better": "mark the better answer: /better left, right or tie",
    "/prefs": "append the marked pairs to a file: /prefs FILE",
    "/save": "write the dialogue: /save FILE.jsonl (messages), FILE.md (readable) or FILE (both)",
    "/quit": "end the chat; Ctrl-D does the same",
}
OTHER_NAMES = {"/exit": "/quit", "/bye": "/quit", "/q": "/quit", "/?": "/help", "/regenerate": "/retry"}


@dataclass(frozen=True, slots=True)
class Command:
    """A command and the text after it."""

    name: str
    text: str


def parse(line: str) -> Command | str:
    """Return the command in a line, or the message. A message that begins with "//" begins with "/".

    Raises ConfigError for an unknown command.
    """
    if line.startswith("//"):
        return line[1:]
    if not line.startswith("/"):
        return line
    word, _, text = line.strip().partition(" ")
    name = OTHER_NAMES.get(word, word)
    if name not in COMMANDS:
        fix = "a message that begins with / is written with //, and /help lists the commands"
        raise ConfigError(f"unknown command {word!r}; {did_you_mean(word, COMMANDS)}", where="chat", fix=fix)
    return Command(name, text.strip())


def inputs(lines: Iterator[str]) -> Iterator[str]:
    """Yield each line, and all lines between two lines of triple quotes as one text. Empty lines are skipped.

    Raises ConfigError for quotes that are not closed.
    """
    for line in lines:
        if not line.lstrip().startswith(QUOTES):
            if line.strip():
                yield line
            continue
        parts = [line.lstrip().removeprefix(QUOTES)]
        while not (len(parts) > 1 or parts[0].strip()) or not parts[-1].rstrip().endswith(QUOTES):
            following = next(lines, None)
            if following is None:
                raise ConfigError(f"the text after {QUOTES} does not end", where="chat", fix=f"end it with {QUOTES}")
            parts.append(following)
        parts[-1] = parts[-1].rstrip().removesuffix(QUOTES)
        text = "\n".join(parts).strip("\n")
        if text.strip():
            yield text


def help_text() -> str:
    """Return the list of commands."""
    rows = [f"{name:10}{text}" for name, text in COMMANDS.items()]
    return "\n".join([*rows, f"{QUOTES:10}begin and end a message of several lines", "Ctrl-C    stop an answer"])
