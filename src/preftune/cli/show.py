"""Print a preference group: the prompt, and each scored token of the responses."""

from __future__ import annotations

from rich.text import Text

from preftune.chat.render import Renderer, pieces_of
from preftune.data.tokenize_groups import Limits, tokenize
from preftune.errors import printable
from preftune.formats.account import Account
from preftune.types import PreferenceGroup, masks_of

MAX_SHOWN = 1200  # characters of a prompt, and tokens of a response


def render_group(group: PreferenceGroup, renderer: Renderer | None, limits: Limits, brackets: bool) -> Text:
    """Return the group as text. `brackets` puts scored tokens in brackets, for output without colours."""
    out = Text()
    out.append(f"--- {group.origin}\n", style="bold")
    if renderer is None:
        out.append(printable(text_of(group.prompt)) + "\n", style="dim")
        for index, response in enumerate(group.responses):
            out.append(f"{role(group, index)}: ", style="bold")
            out.append(printable(text_of(response)) + "\n", style="green")
        return out
    account = Account(group.origin)
    tokenized = tokenize([group], renderer, limits, account)
    for reason in account.dropped:
        out.append(f"dropped: {reason}\n", style="red")
    for note in account.noted:
        out.append(f"note: {note}\n", style="yellow")
    for tokens in tokenized:
        out.append(clip(printable(renderer.tokenizer.decode(tokens.prompt_ids.tolist()))) + "\n", style="dim")
        for index, ids in enumerate(tokens.response_ids):
            mask = masks_of(tokens)[index]
            out.append(f"{role(group, index)} ({int(mask.sum())} scored tokens): ", style="bold")
            pieces = pieces_of(renderer.tokenizer, tokens.prompt_ids.tolist(), ids.tolist())
            for place, piece in enumerate(pieces[:MAX_SHOWN]):
                if not mask[place]:  # a user or tool message between the turns of the response
                    out.append(printable(piece), style="dim")
                    continue
                out.append(
                    f"[{visible(piece)}]" if brackets else printable(piece), style="green" if place % 2 else "cyan"
                )
            out.append("\n")
    return out


def role(group: PreferenceGroup, index: int) -> str:
    """Return the label of a response in the data."""
    if group.labels:
        return {1: "desirable", -1: "undesirable"}.get(group.labels[index], "unlabelled")
    wins = sum(j.better == index for j in group.judgements)
    losses = sum(j.worse == index for j in group.judgements)
    if len(group.judgements) == 1:
        return "chosen" if wins else "rejected" if losses else f"response {index}"
    return f"response {index} (better {wins}x, worse {losses}x)" if group.judgements else "response"


def text_of(text: object) -> str:
    """Return a text or a dialogue, shortened to its end."""
    if isinstance(text, str):
        return clip(text)
    assert isinstance(text, tuple)
    return clip("\n".join(f"<{m.role}> {m.content}" for m in text))


def clip(text: str) -> str:
    """Return the last MAX_SHOWN characters, because the text right before the response matters most."""
    return text if len(text) <= MAX_SHOWN else f"... {text[-MAX_SHOWN:]}"


def visible(piece: str) -> str:
    """Return the text of a token on one line."""
    return printable(piece).replace("\n", "\\n").replace("\t", "\\t")
