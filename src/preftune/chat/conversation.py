"""Render a response of several messages within its conversation, and find the text that the assistant writes.

The conversation is rendered once, exactly as plain transformers does. An assistant turn begins after the generation
prompt of the messages before it, and ends where the template ends the turn. Chat templates may write earlier turns
differently once later ones follow: without reasoning (Qwen 3, DeepSeek-R1), with the tools before a later turn
(Mistral), or without a final token (Phi-3). Such turns are found by the content of the message before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from preftune.chat.faults import CHANGED, LEFT_OUT, NO_EXTENSION, Fault
from preftune.chat.lost_text import find_missing
from preftune.chat.prepare import without_reasoning
from preftune.chat.response_ends import BOS_TWICE, END_INSIDE, Ends
from preftune.chat.template import RefusedByTemplate, Template, open_think
from preftune.chat.texts import Conversation, Encoded, Texts
from preftune.types import Message, PreferenceGroup

MARK = "\ue123"  # a private character, which no template changes
THINK_BLOCK = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)
EMPTY_THINK = re.compile(r"<think>\s*</think>\s*\Z")
HISTORY = "the chat template removes the reasoning from earlier turns of a response"
UNWEIGHTED = ("0", "0.0", "false")


@dataclass(frozen=True, slots=True)
class Turn:
    """The text [begin, end) of an assistant turn in the rendered conversation.

    opens  end of the generation prompt that the conversation does not contain, such as "<think>"
    """

    index: int
    begin: int
    end: int
    opens: str = ""


def conversation_of(
    template: Template, ends: Ends, prompt: Sequence[Message], response: Sequence[Message], notes: list[str]
) -> Conversation | Fault:
    """Render prompt and response, and find the scored turns. Raises RefusedByTemplate."""
    messages, settings = (*prompt, *response), template.settings
    whole = template.render(messages, generation=False)
    turns: list[Turn] = []
    for index in range(len(prompt), len(messages)):
        if messages[index].role != "assistant":
            continue
        turn = _turn(template, ends, messages, index, whole)
        if isinstance(turn, Fault):
            return turn
        turns.append(turn)
    fault = _lost_text(template, messages, len(prompt), turns, whole, notes)
    if fault:
        return fault
    wanted = turns[-1:] if settings.scored_turns == "last" else turns
    scored = {turn.index for turn in wanted if dict(messages[turn.index].extra).get("weight", "1") not in UNWEIGHTED}
    if not scored:
        return Fault("all scored turns of the response have weight 0")
    opens = any(turn.opens for turn in turns)
    if settings.thinking in ("keep", "unscored") or (settings.thinking == "drop" and opens):
        whole, spans = _with_reasoning(template, ends, messages, turns, whole)
        text = whole[slice(*spans[turns[-1].index])]
    else:
        text = whole[turns[-1].begin : turns[-1].end]
        spans = {turn.index: (turn.begin, turn.end) for turn in turns}
        spans = _within_markers(template, messages, whole, spans)
    content = messages[-1].content.strip()
    end = text.rfind(content) + len(content) if content in text and content else 0
    if not content:  # only tool calls
        end = max(0, *(text.rfind(token) for token in ends.ends)) if ends.ends else 0
    inner, closes = ends.count(text[:end]), ends.count(text[end:]) > 0
    return Conversation(whole, tuple(spans[i] for i in sorted(scored)), closes, inner)


def _turn(template: Template, ends: Ends, messages: tuple[Message, ...], index: int, whole: str) -> Turn | Fault:
    """Find an assistant turn in the rendered conversation."""
    last = index == len(messages) - 1
    opened = template.render(messages[:index], generation=True)
    strict = last and template.settings.thinking == "template"
    alone = whole if last else template.render(messages[: index + 1], generation=False)
    start, own = (
        _start(template, messages[:stop], index, text, opened, strict)
        for stop, text in ((len(messages), whole), (index + 1, alone))
    )
    if start is None or own is None:
        return Fault(NO_EXTENSION if last else CHANGED, "" if last else f"turn {index + 1} of the conversation")
    begin, opens = start
    text = alone[own[0] :]
    if last:
        content = messages[index].content.strip()
        at = text.find(content) + len(content) if content else 0
        trailing = "" if messages[index].extra else ends.text_after_end(text[max(at, 0) :])
        return Turn(index, begin, begin + len(text.removesuffix(trailing)), opens)
    for candidate in _forms(text, messages[index].content, ends):
        if whole.startswith(candidate, begin):
            return Turn(index, begin, begin + len(candidate), opens)
    return Fault(CHANGED, f"turn {index + 1} of the conversation")


def _start(
    template: Template, messages: tuple[Message, ...], index: int, text: str, opened: str, strict: bool
) -> tuple[int, str] | None:
    """Return where turn `index` begins in the rendered `messages`, and the end of `opened` that is missing there."""
    for header, missing in _headers(opened, strict):
        if text.startswith(header):
            return len(header), missing
    before = messages[index - 1]
    core = before.content.rstrip()
    if not core:
        return None
    marked = (
        *messages[: index - 1],
        replace(before, content=core + MARK + before.content[len(core) :]),
        *messages[index:],
    )
    try:
        marked_text = template.render(marked, generation=False)
        after = template.render(marked[:index], generation=True).partition(MARK)[2]
    except RefusedByTemplate:
        return None
    if marked_text.count(MARK) != 1 or marked_text.replace(MARK, "") != text:
        return None
    at = marked_text.index(MARK)
    for header, missing in _headers(after, strict):
        if text.startswith(header, at):
            return at + len(header), missing
    return None


def _headers(opened: str, strict: bool) -> Iterator[tuple[str, str]]:
    """Yield the generation prompt, then without the beginning or the whole of a <think> block, with what is missing."""
    yield opened, ""
    if not strict:
        for size in (len(open_think(opened)), len(match.group()) if (match := EMPTY_THINK.search(opened)) else 0):
            if size:
                yield opened[:-size], opened[-size:]


def _forms(text: str, content: str, ends: Ends) -> Iterator[str]:
    """Yield the forms in which the text of a last turn may occur as an earlier turn: with less after its end token,
    or without its reasoning."""
    rest = content.rpartition("</think>")[2]
    visible, lead = rest.strip(), rest[: len(rest) - len(rest.lstrip())]
    at = text.rfind(visible) + len(visible) if visible and visible in text else 0
    forms = [text]
    match = re.search(rf"({'|'.join(map(re.escape, ends.ends))})\s*", text[at:])
    if match:
        forms += [text[: at + match.end()], text[: at + match.end(1)]]
    for form in forms:
        yield form
    for form in forms:
        match = THINK_BLOCK.match(form)
        if match:
            after = form.index("</think>") + len("</think>")
            yield form[after:].removeprefix("\n\n")
            yield form[match.end() :]
            yield lead + form[match.end() :]


def _lost_text(
    template: Template, messages: Sequence[Message], first: int, turns: Sequence[Turn], whole: str, notes: list[str]
) -> Fault | None:
    """Return a fault if the template removes text of the response. Reasoning of earlier turns is only noted."""
    settings = template.settings
    places = {turn.index: whole[turn.begin : turn.end] for turn in turns}
    opens = {turn.index: turn.opens for turn in turns}
    keeps = settings.thinking in ("keep", "unscored")
    for index in range(first, len(messages)):
        message, text = messages[index], places.get(index, whole)
        message = without_reasoning(message) if keeps else message  # the reasoning is put in later
        missing = find_missing((message,), opens.get(index, "") + text)
        if missing and index < turns[-1].index and not find_missing((without_reasoning(message),), text):
            notes.append(HISTORY)
        elif missing and settings.allow_dropped_text:
            notes.append(LEFT_OUT)
        elif missing:
            return Fault(LEFT_OUT, missing=missing, rendered=text)
    return None


def _with_reasoning(
    template: Template, ends: Ends, messages: tuple[Message, ...], turns: Sequence[Turn], whole: str
) -> tuple[str, dict[int, tuple[int, int]]]:
    """Return the conversation with the reasoning of the data in all turns of the response, and the scored texts.

    data.thinking=unscored: the scored text of a turn begins after its reasoning.
    """
    parts: list[str] = []
    spans, at, size = {}, 0, 0
    for turn in turns:
        parts.append(whole[at : turn.begin] + turn.opens)
        size += len(parts[-1])
        opened = template.render(messages[: turn.index], generation=True)
        own = whole[turn.begin : turn.end]
        try:
            text = template.with_reasoning(messages[: turn.index], opened, messages[turn.index], True)
        except RefusedByTemplate:  # some templates write no content next to tool calls
            if without_reasoning(messages[turn.index]) != messages[turn.index] or turn.opens:
                raise
            text = own
        last = turn.index == len(messages) - 1
        if not last:  # the rest of the text belongs to a last turn only
            content = THINK_BLOCK.sub("", messages[turn.index].content).strip()
            text = next(
                (f for f in _forms(text, messages[turn.index].content, ends) if own.endswith(_tail(f, content))), text
            )
        end = text.find("</think>")
        close = end + len("</think>") if end >= 0 else 0
        close += len(text[close:]) - len(text[close:].lstrip()) if close else 0
        parts.append(text)
        spans[turn.index] = (size + (close if template.settings.thinking == "unscored" else 0), size + len(text))
        size, at = size + len(text), turn.end
    return "".join([*parts, whole[at:]]), spans


def _tail(text: str, content: str) -> str:
    return text[text.rfind(content) + len(content) :] if content in text else text


def _within_markers(
    template: Template, messages: Sequence[Message], whole: str, spans: dict[int, tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """Limit each turn to what the template marks with {% generation %}, if it does."""
    marked: list[tuple[int, int]] = template.generated(messages, whole)
    if not marked:
        return spans
    result = {}
    for index, (begin, end) in spans.items():
        inside = [(max(begin, b), min(end, e)) for b, e in marked if b < end and e > begin]
        result[index] = (inside[0][0], inside[-1][1]) if inside else (end, end)
    return result


def token_mask(tokenizer: Any, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """Return the token ids of a conversation, and which of them have characters in its spans."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    output = tokenizer(
        [conversation.text],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=fast,
        verbose=False,
    )
    ids: list[int] = list(output["input_ids"][0])
    mask = [False] * len(ids)
    if not fast:  # tokenizers in Python do not tell where a token begins
        for begin, end in conversation.spans:
            first, stop = (_common(ids, tokenizer, conversation.text[:place]) for place in (begin, end))
            mask[first:stop] = [True] * (stop - first)
        return ids, mask
    spans, number, before = conversation.spans, 0, 0
    for place, (begin, end) in enumerate(output["offset_mapping"][0]):
        if begin == end:  # some tokenizers leave white space out of the offsets
            begin = min(begin, before)
        before = end
        while number < len(spans) and spans[number][1] <= begin:
            number += 1
        if number == len(spans):
            break
        mask[place] = begin < end and end > spans[number][0]
    return ids, mask


def _common(ids: Sequence[int], tokenizer: Any, text: str) -> int:
    """Return how many ids of `text` are also the first of `ids`."""
    own = tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"][0]
    return next((i for i, (a, b) in enumerate(zip(own, ids, strict=False)) if a != b), min(len(own), len(ids)))


def encoded_conversations(tokenizer: Any, ends: Ends, group: PreferenceGroup, one: Texts) -> Encoded:
    """Return the ids and masks of a group with `one.conversations`.

    The prompt is what all conversations have in common before the first scored token.
    """
    bos, rows = tokenizer.bos_token_id, []
    for place, conversation in enumerate(one.conversations):
        ids, mask = token_mask(tokenizer, conversation)
        while bos is not None and ids[:2] == [bos, bos]:
            ids, mask = ids[1:], mask[1:]
            one.notes.append(f"the prompt {BOS_TWICE}")
        if True not in mask:
            return Encoded([], [], (), Fault("no token of the response is scored"))
        size = len(mask) - mask[::-1].index(True)
        ids, mask = ids[:size], mask[:size]
        if group.ended and not group.ended[place]:
            one.notes.append("a response was cut off during sampling; no EOS was added")
            first = next(i for i in range(size, 0, -1) if i == 1 or not mask[i - 2])  # of the last scored turn
            stops = [i for i in range(first - 1, size) if ids[i] in ends.end_ids]
            if conversation.closes and first - 1 < (stops[conversation.inner :] or [size])[0] < size:
                ids, mask = ids[: stops[conversation.inner]], mask[: stops[conversation.inner]]
        elif not conversation.closes:
            one.notes.append("the chat template does not write an end token after the response; EOS was added")
            ids, mask = [*ids, tokenizer.eos_token_id], [*mask, True]
        elif conversation.inner:
            one.notes.append(END_INSIDE)
        rows.append((ids, mask))
    common = min(mask.index(True) for _, mask in rows)
    first_ids = rows[0][0]
    for ids, _ in rows[1:]:
        common = next((i for i in range(common) if ids[i] != first_ids[i]), common)
    masks = tuple(mask[common:] for _, mask in rows)
    responses = [ids[common:] for ids, _ in rows]
    notes = tuple(dict.fromkeys(one.notes))
    return Encoded(
        first_ids[:common], responses, notes, dropped=one.dropped, masks=() if all(map(all, masks)) else masks
    )
