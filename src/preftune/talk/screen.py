"""Show answers while they are generated: one after the other, or two in columns."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from preftune import stop
from preftune.errors import printable
from preftune.talk.dialogue import SIDES, Answer

NARROW = 60  # columns of a terminal, below which two answers do not fit side by side
REFRESH_S = 0.08

#: Begins the answer of one model, given a function that tells whether it was stopped.
Start = Callable[[Callable[[], bool]], Iterator[Answer]]


@dataclass(frozen=True, slots=True)
class Screen:
    """Where answers are shown. `names` are the models; `interactive`: stdin and stdout are a terminal."""

    names: tuple[str, ...]
    interactive: bool
    console: Console

    @property
    def has_columns(self) -> bool:
        console = self.console
        wide = self.interactive and not console.is_dumb_terminal and console.width >= NARROW
        return wide and len(self.names) == 2

    def title(self, side: int) -> str:
        return f"{SIDES[side]}: {self.names[side]}" if len(self.names) == 2 else self.names[0]

    def show(self, starts: Sequence[Start]) -> list[Answer]:
        """Show the answers of all models while they are generated, and return them. Ctrl-C on a terminal stops them."""
        if self.has_columns:
            with stoppable(self.interactive) as stopped:
                return self._in_columns([start(stopped) for start in starts])
        answers = []
        for side, start in enumerate(starts):
            if len(starts) == 2:
                self.write(f"{self.title(side)}\n")
            with stoppable(self.interactive) as stopped:
                answers.append(self._in_line(start(stopped)))
        return answers

    def write(self, text: str) -> None:
        """Write text to stdout at once."""
        sys.stdout.write(printable(text) if self.interactive else text)
        sys.stdout.flush()

    def _in_line(self, answers: Iterator[Answer]) -> Answer:
        shown, answer = "", Answer()
        for answer in answers:
            if answer.text.startswith(shown):
                self.write(answer.text[len(shown) :])
                shown = answer.text
        self.write("\n")
        return answer

    def _in_columns(self, answers: Sequence[Iterator[Answer]]) -> list[Answer]:
        """Let the models generate a token each in turn. While they do, each column shows its last lines."""
        latest, active = [Answer(), Answer()], dict(enumerate(answers))
        refreshed = 0.0
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            while active:
                for side, iterator in list(active.items()):
                    answer = next(iterator, None)
                    if answer is None:
                        del active[side]
                    else:
                        latest[side] = answer
                if time.monotonic() - refreshed >= REFRESH_S:
                    live.update(self._table(latest, self.console.height - 4), refresh=True)
                    refreshed = time.monotonic()
            live.update("", refresh=True)
        self.console.print(self._table(latest))
        return latest

    def _table(self, answers: Sequence[Answer], last_lines: int | None = None) -> Table:
        width = (self.console.width - 5) // 2
        table = Table(box=box.MINIMAL, show_edge=False, padding=(0, 1), header_style="bold")
        cells = []
        for side, answer in enumerate(answers):
            table.add_column(Text(printable(self.title(side))), width=width)
            lines = Text(printable(answer.text)).wrap(self.console, width)
            cells.append(Text("\n").join(lines[-max(last_lines, 1) :] if last_lines is not None else lines))
        table.add_row(*cells)
        return table


@contextmanager
def stoppable(interactive: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed in this context. In a pipe, Ctrl-C ends the command."""
    pressed: list[bool] = []
    if not interactive:
        yield lambda: False
        return
    with stop.ctrl_c(lambda *_: pressed.append(True)):
        yield lambda: bool(pressed)


def statistics(answer: Answer, limit: int) -> str:
    """Return the length and speed of an answer, and why it ended early."""
    speed = f", {answer.tokens / answer.seconds:.1f} tokens/s" if answer.seconds else ""
    reason = "" if answer.ended else f"; cut off at {limit} tokens" if answer.tokens >= limit else "; stopped"
    return f"{answer.tokens} tokens{speed}{reason}"
