"""preftune chat: read the lines of a user from a terminal or a pipe, and answer them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from preftune import stop
from preftune.errors import ConfigError, DataError, PreftuneError
from preftune.model.generate import Sampling
from preftune.talk.commands import COMMANDS, inputs
from preftune.talk.dialogue import Dialogue
from preftune.talk.files import Pairs
from preftune.talk.screen import Screen
from preftune.talk.session import Session
from preftune.talk.settings import described
from preftune.talk.speakers import OpenOptions, open_speakers
from preftune.train.display import Display

PROMPT, MORE = ">>> ", "... "


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of `preftune chat`. `plain`: continue texts, even if the model has a chat template."""

    open: OpenOptions
    sampling: Sampling
    system: str = ""
    plain: bool = False
    prefs: str | None = None


def run(options: Options, display: Display) -> None:
    """Load the models and chat until the input ends. Without a terminal, the first error ends the chat."""
    pairs = _pairs(options)
    speakers = open_speakers(options.open, display.say)
    plain = options.plain or not speakers[0].has_template
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character gets an escape
            stream.reconfigure(errors="backslashreplace")
    screen = Screen(tuple(speaker.name for speaker in speakers), interactive, Console(highlight=False, emoji=False))

    def to_terminal(text: str) -> None:
        screen.write(f"{text}\n")

    say = to_terminal if interactive else display.say
    session = Session(speakers, Dialogue(plain), options.sampling, screen, say, pairs)
    for line in _introduction(session, options):
        display.say(line)
    if options.system:
        session.handle(f"/system {options.system}")
    if interactive:
        with stop.ctrl_c():
            _from_terminal(session)
    else:
        for text in inputs(_piped()):
            if not session.handle(text):
                break
    if session.summary():
        display.say(f"{session.summary()}. Next: preftune data check {session.pairs.path if session.pairs else ''}")


def _pairs(options: Options) -> Pairs | None:
    """Return the preference file. Raises ConfigError if there will not be two answers to compare."""
    if options.prefs is None:
        return None
    if len(options.open.models) < 2:
        fix = "add --beside MODEL, which can be the same model"
        raise ConfigError("preference pairs need two answers", where="--prefs", fix=fix)
    return Pairs.open(options.prefs)


def _introduction(session: Session, options: Options) -> Iterator[str]:
    """Yield the lines about models, settings and limits at the start of a chat."""
    speakers = session.speakers
    if session.dialogue.plain:
        forced = speakers[0].has_template
        why = "--plain is set" if forced else f"{speakers[0].name} has no chat template"
        yield f"{why}, so it continues your text. Each new text begins on a new line."
        if not forced:
            yield "For a dialogue, add --template dialogue, or --template with a .jinja file."
    yield f"{' | '.join(session.screen.title(side) for side in range(len(speakers)))} ({described(options.sampling)})"
    limits = [speaker.limit for speaker in speakers if speaker.limit]
    if limits and options.sampling.max_new_tokens > min(limits) // 2:
        yield f"answers have at most {max(1, min(limits) // 2)} tokens: half of the model's context of {min(limits)}"
    if session.screen.interactive:
        yield "/help lists the commands, Ctrl-C stops an answer, Ctrl-D or /quit ends the chat"


def _piped() -> Iterator[str]:
    """Yield the lines of stdin. Raises DataError for a line that is not UTF-8."""
    for number, line in enumerate(getattr(sys.stdin, "buffer", None) or _encoded(sys.stdin), start=1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            fix = "convert the input to UTF-8, for example with iconv"
            raise DataError(f"not UTF-8: {error.reason}", where=f"stdin:{number}", fix=fix) from error


def _encoded(lines: Any) -> Iterator[bytes]:
    return (line.encode() for line in lines)


def _from_terminal(session: Session) -> None:
    """Read lines until Ctrl-D or /quit. An error is printed, and the chat continues."""
    _set_up_readline(list(COMMANDS))
    while True:
        try:
            text = _typed(session.say)
            if text is None:
                return
            if not session.handle(text):
                return
        except PreftuneError as error:
            session.say(str(error))
        except stop.StopRequest:  # SIGTERM
            raise
        except KeyboardInterrupt:
            session.say("\n(/quit or Ctrl-D ends the chat)")


def _typed(say: Callable[[str], None]) -> str | None:
    """Return a message or a command; None at the end of the input."""
    first = True

    def lines() -> Iterator[str]:
        nonlocal first
        while True:
            try:
                line = input(PROMPT if first else MORE)
            except EOFError:
                say("")
                return
            except UnicodeDecodeError as error:
                raise DataError(f"not UTF-8: {error.reason}", where="chat", fix="set the terminal to UTF-8") from error
            first = not line.strip()  # an empty line asks again
            yield line

    return next(inputs(lines()), None)


def _set_up_readline(words: Sequence[str]) -> None:
    """Enable editing and recalling lines, and completion of commands with Tab. Without readline, lines are plain."""
    with suppress(ImportError):
        import readline

        readline.set_completer(completer(words))
        readline.set_completer_delims(" ")
        is_libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


def completer(words: Sequence[str]) -> Callable[[str, int], str | None]:
    """Return a function for readline that completes the words."""

    def complete(text: str, state: int) -> str | None:
        matches = [f"{word} " for word in words if text.startswith("/") and word.startswith(text)]
        return matches[state] if state < len(matches) else None

    return complete
