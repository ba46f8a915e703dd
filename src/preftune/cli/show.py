"""A preference group for the eye: what is prompt, what is scored, token by token."""

from __future__ import annotations

from rich.text import Text

from preftune.chat.render import Renderer, pieces_of
from preftune.data.groups import Limits, tokenize
from preftune.formats.account import Account
from preftune.types import PreferenceGroup

LONGEST = 1200  # characters of a prompt or response that are shown


def render_group(group: PreferenceGroup, renderer: Renderer | None, limits: Limits, brackets: bool) -> Text:
    """The group as text; `brackets` marks scored tokens for a screen without colours."""
    out = Text()
    out.append(f"--- {group.origin}\n", style="bold")
    if renderer is None:
        out.append(printable(shown(group.prompt)) + "\n", style="dim")
        for index, response in enumerate(group.responses):
            out.append(f"{role(group, index)}: ", style="bold")
            out.append(printable(shown(response)) + "\n", style="green")
        return out
    account = Account(group.origin)
    found = tokenize([group], renderer, limits, account)
    for reason in account.dropped:
        out.append(f"dropped: {reason}\n", style="red")
    for note in account.noted:
        out.append(f"note: {note}\n", style="yellow")
    for tokens in found:
        out.append(clip(printable(renderer.tokenizer.decode(tokens.prompt_ids.tolist()))) + "\n", style="dim")
        for index, ids in enumerate(tokens.response_ids):
            out.append(f"{role(group, index)} ({len(ids)} scored tokens): ", style="bold")
            pieces = pieces_of(renderer.tokenizer, tokens.prompt_ids.tolist(), ids.tolist())
            for place, piece in enumerate(pieces[:LONGEST]):
                out.append(
                    f"[{visible(piece)}]" if brackets else printable(piece), style="green" if place % 2 else "cyan"
                )
            out.append("\n")
    return out


def role(group: PreferenceGroup, index: int) -> str:
    """What the data say about a response."""
    if group.labels:
        return {1: "desirable", -1: "undesirable"}.get(group.labels[index], "unlabelled")
    won = sum(j.better == index for j in group.judgements)
    lost = sum(j.worse == index for j in group.judgements)
    if len(group.judgements) == 1:
        return "chosen" if won else "rejected" if lost else f"response {index}"
    return f"response {index} (better {won}x, worse {lost}x)" if group.judgements else "response"


def shown(text: object) -> str:
    """A text or a dialogue, clipped."""
    if isinstance(text, str):
        return clip(text)
    assert isinstance(text, tuple)
    return clip("\n".join(f"<{m.role}> {m.content}" for m in text))


def clip(text: str) -> str:
    """The end of a long text: what comes right before the response matters most."""
    return text if len(text) <= LONGEST else f"... {text[-LONGEST:]}"


def visible(piece: str) -> str:
    """A token's text on one line."""
    return printable(piece).replace("\n", "\\n").replace("\t", "\\t")


def printable(text: str) -> str:
    """No control characters but line breaks: data must not be able to steer a terminal."""
    return "".join(c if c == "\n" or (c.isprintable() and c != "\x7f") else repr(c)[1:-1] for c in text)
