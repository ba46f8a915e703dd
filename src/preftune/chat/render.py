"""Text -> token ids: one BOS, a prompt that all responses share to the id, an EOS that is scored.

Plain text: the prompt's ids are `tokenizer(prompt)`; a response's ids are what `tokenizer(prompt + response)`
adds after them. Where the joint tokenisation changes the prompt's ids (a merge across the boundary) the
response is tokenised apart, without an artificial leading space.

Chat: the prompt is rendered once with the generation prompt; the response is what the template adds after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from preftune.chat.arguments import QUOTED, other_forms, quoted
from preftune.chat.dropped import left_out, unwritten_links
from preftune.chat.ends import BEFORE, CLOSED, ENDED, INSIDE, TWICE, Ends, special_texts
from preftune.chat.faults import LEFT_OUT, NO_EXTENSION, Fault
from preftune.chat.template import ChatSettings, RefusedByTemplate, Template, opened
from preftune.chat.turns import in_turns
from preftune.errors import ModelError
from preftune.formats.values import BadRow
from preftune.types import Message, PreferenceGroup

ANCHORS = ("\n", ".", ":", "a", "0", "-")
PLAIN = (
    "the prompts are plain text and the model's chat template is not applied; set data.as_chat=true "
    "(--as-chat) to apply it"
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of one group; `notes` says what had to be done that one would not expect.

    fault    why the chat template cannot render the group; it then has no ids
    dropped  whether the chat template leaves out part of a response
    """

    prompt_ids: list[int]
    response_ids: list[list[int]]
    notes: tuple[str, ...]
    fault: Fault | None = None
    dropped: bool = False


@dataclass(slots=True)
class Spelled:
    """A group as the text that is tokenised.

    inner   for each chat response, how many end tokens stand before the template's own
    closes  for each chat response, whether the template ends it
    """

    prompt: str
    responses: list[str]
    chat: bool = False
    inner: list[int] = field(default_factory=list)
    closes: list[bool] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fault: Fault | None = None
    dropped: bool = False


@dataclass(frozen=True)
class Renderer:
    """A tokenizer, its chat template, and what is known about its special tokens.

    `end_ids` are all tokens that end a response (the tokenizer's EOS and the model's own generation ends), `marks` the
    texts of all special tokens, and `suffix` is how many tokens the tokenizer adds at the end of a text.
    """

    tokenizer: Any
    template: Template
    ends: Ends
    suffix: int
    marks: tuple[str, ...]

    @staticmethod
    def of(tokenizer: Any, end_ids: Sequence[int] = (), settings: ChatSettings | None = None) -> Renderer:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no EOS token",
                where=str(tokenizer.name_or_path),
                why="a model that never sees the end of a response learns not to stop",
                fix='set "eos_token" in tokenizer_config.json',
            )
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a")["input_ids"]
        starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
        suffix = len(full) - starts[0] - len(bare) if starts else 0
        bos = tokenizer.bos_token_id
        ends = Ends.of(tokenizer, end_ids, writes_bos=bos is not None and bos in full[: starts[0] if starts else 1])
        template = Template.of(tokenizer, settings or ChatSettings())
        return Renderer(tokenizer, template, ends, suffix, special_texts(tokenizer))

    @property
    def end_ids(self) -> frozenset[int]:
        return self.ends.end_ids

    @property
    def settings(self) -> ChatSettings:
        """The chat settings, with the moment that the template has written."""
        return replace(self.template.settings, moment=self.template.moment if self.template.dates else None)

    def encode(self, groups: Sequence[PreferenceGroup]) -> list[Encoded]:
        """Ids of many groups at once; the tokenizer works in parallel on all their texts."""
        spelled = [self._spelled(group) for group in groups]
        sound = [one for one in spelled if not one.fault]
        prompts = iter(self._ids([(one.prompt, one.chat) for one in sound]))
        joint = iter(self._ids([(one.prompt + r, one.chat) for one in sound for r in one.responses]))
        header = self._header(groups, spelled)
        encoded = []
        for group, one in zip(groups, spelled, strict=True):
            if one.chat and not one.fault:
                one.notes += [note for note in (self.template.note, header) if note]
            if one.fault:
                encoded.append(Encoded([], [], (), one.fault))
            else:
                encoded.append(self._assemble(group, one, next(prompts), [next(joint) for _ in one.responses]))
        return encoded

    def _spelled(self, group: PreferenceGroup) -> Spelled:
        try:
            group = in_turns(group) if self.template.settings.as_chat else group
            return self._plain(group) if isinstance(group.prompt, str) else self._chat(group)
        except BadRow as fault:
            return Spelled("", [], fault=Fault(str(fault)))
        except RefusedByTemplate as fault:
            for other, note in other_forms(group):
                with suppress(RefusedByTemplate):
                    one = self._chat(other)
                    one.notes.append(note)
                    return one
            return Spelled("", [], fault=Fault(str(fault)))

    def _plain(self, group: PreferenceGroup) -> Spelled:
        """Plain text without the BOS that the tokenizer writes itself."""
        prompt, twice = self.ends.without_bos(str(group.prompt))
        notes = [f"the prompt {TWICE}"] if twice else []
        if group.prompt and self.template.source and not any(mark in str(group.prompt) for mark in self.marks):
            notes.append(PLAIN)
        responses = []
        for response in map(str, group.responses):
            text, again = self.ends.without_bos(response, first=not group.prompt)
            responses.append(text)
            if again:
                notes.append("a response began with BOS; it was removed" if group.prompt else f"the text {TWICE}")
            if self.ends.bos and self.ends.bos in text and self.ends.bos not in self.ends.ends:
                notes.append(INSIDE)
        return Spelled(prompt, responses, notes=notes)

    def _chat(self, group: PreferenceGroup) -> Spelled:
        """Chat messages as the template writes them: the prompt, and what each response adds to it."""
        notes: list[str] = []
        messages = self._clean(group.prompt, notes)  # type: ignore[arg-type]
        prompt = self.template.render(messages, generation=True)
        one = Spelled(prompt, [], chat=True, notes=notes)
        if left_out(messages, prompt):
            notes.append("the chat template leaves out part of the prompt")
        if any("name" in unwritten_links(m, prompt) for m in messages if m.extra and m.role != "tool"):
            notes.append("the chat template does not write the names of the prompt's messages")
        for response, ended in zip(group.responses, group.ended or (True,) * len(group.responses), strict=True):
            (answer,) = self._clean(response, notes, before=messages)  # type: ignore[arg-type]
            if self.template.settings.thinking == "keep":
                text = self.template.kept(messages, prompt, answer, ended)
            else:
                whole = self.template.render((*messages, answer), generation=False)
                if not whole.startswith(prompt):
                    return replace(one, fault=Fault(NO_EXTENSION, _parting(prompt, whole)))
                text = whole[len(prompt) :]
            lacking = left_out((answer,), opened(prompt) + text)
            if lacking and not self.template.settings.allow_dropped_text:
                return replace(one, fault=Fault(LEFT_OUT, lacking=lacking, rendered=text))
            links = unwritten_links(answer, text) if answer.extra else []
            notes += [f"the chat template does not write {', '.join(links)} of the response"] if links else []
            notes += [QUOTED] if quoted(answer, text) else []
            notes += [LEFT_OUT] if lacking else []
            notes += [INSIDE] if self.ends.has_bos(answer.content) else []
            one.dropped = one.dropped or bool(lacking)
            head, tail = self._parts(text, answer.content.strip())
            beyond = "" if answer.extra else self.ends.beyond(tail)
            if beyond:  # as templates do that always write a generation prompt
                notes.append(f"the chat template writes {beyond!r} after the end of the response; it is not scored")
                text, tail = text.removesuffix(beyond), tail.removesuffix(beyond)
            one.inner.append(self.ends.count(head))
            one.closes.append(self.ends.count(tail) > 0)
            one.responses.append(text)
        return one

    def _clean(
        self, messages: tuple[Message, ...], notes: list[str], before: tuple[Message, ...] = ()
    ) -> tuple[Message, ...]:
        """The messages without BOS at the beginning of a content and without the template's end tokens at its end."""
        result: list[Message] = []
        for place, message in enumerate(messages):
            content, again = self.ends.without_bos(message.content, first=False)
            if again:
                notes.append("a message began with BOS; it was removed")
            if content.rstrip().endswith(self.marks):
                dialogue = (*before, *result, replace(message, content=content), *messages[place + 1 :])
                turn = self.template.closing(dialogue if before else (*dialogue, Message("assistant", "")), self.marks)
                closed = self.ends.content(content, self.template.render(dialogue, generation=False), turn)
                notes += [CLOSED] if closed is not content else []
                content = closed
            result.append(message if content is message.content else replace(message, content=content))
        return tuple(result)

    def _parts(self, text: str, content: str) -> tuple[str, str]:
        """The rendered response up to the end of its content, and what the template writes after it."""
        at = text.find(content) + len(content) if content and content in text else -1
        if at < 0:  # an answer of tool calls alone, or one that is left out: the last end token closes it
            at = max((text.rfind(end) for end in self.ends.ends), default=-1)
        return (text[:at], text[at:]) if at >= 0 else (text, "")

    def _header(self, groups: Sequence[PreferenceGroup], spelled: Sequence[Spelled]) -> str:
        """A note where the template ignores the generation prompt, so that the model has to write a header itself."""
        group = next((g for g, one in zip(groups, spelled, strict=True) if one.chat and not one.fault), None)
        if group is None:
            return ""
        try:
            prompt = (in_turns(group) if self.template.settings.as_chat else group).prompt
            messages = self._clean(prompt, [])  # type: ignore[arg-type]
            if self.template.render(messages, generation=True) != self.template.render(messages, generation=False):
                return ""
            header = self.template.ending(messages)[0].strip()
        except RefusedByTemplate:
            return ""
        what = f"the chat template has no generation prompt; its header {header!r} is scored as part of the response"
        return what if header else ""

    def _ids(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Special tokens are added to plain text; a template has written its own."""
        result: list[list[int]] = [[]] * len(texts)
        for chat in (False, True):
            where = [i for i, (_, is_chat) in enumerate(texts) if is_chat == chat]
            if where:
                found = self.tokenizer([texts[i][0] for i in where], add_special_tokens=not chat, verbose=False)
                for i, ids in zip(where, found["input_ids"], strict=True):
                    result[i] = ids if chat or not self.suffix else ids[: -self.suffix]
        return result

    def _assemble(self, group: PreferenceGroup, one: Spelled, prompt_ids: list[int], joint: list[list[int]]) -> Encoded:
        notes = one.notes
        response_ids = []
        for place, (text, joined) in enumerate(zip(one.responses, joint, strict=True)):
            if joined[: len(prompt_ids)] == prompt_ids:
                ids = joined[len(prompt_ids) :]
            else:
                ids = self._apart(text)
                notes.append("a merge across the end of the prompt; the response was tokenised apart")
            if group.ended and not group.ended[place]:
                notes.append("a response was cut off when it was sampled; it has no EOS")
                ids = self._cut_off(ids, one, place)
            else:
                ids = self._ended(ids, one, place, notes)
            response_ids.append(ids)
        bos = self.tokenizer.bos_token_id
        if bos is not None and prompt_ids[:2] == [bos, bos]:
            while prompt_ids[:2] == [bos, bos]:
                prompt_ids = prompt_ids[1:]
            notes.append(f"the prompt {TWICE}")
        return Encoded(prompt_ids, response_ids, tuple(dict.fromkeys(notes)), dropped=one.dropped)

    def _ended(self, ids: list[int], one: Spelled, place: int, notes: list[str]) -> list[int]:
        """The response with exactly the EOS that its text or template wrote, or with one added."""
        if one.chat and one.closes[place]:
            notes += [BEFORE] if one.inner[place] else []
            return ids
        ids, closed = self.ends.closed(ids)
        if one.chat and not closed:
            notes.append("the chat template ends no turn; EOS was added")
        elif closed:
            notes.append(ENDED)
        ids = ids if closed else [*ids, self.tokenizer.eos_token_id]
        notes += [BEFORE] if self.end_ids.intersection(ids[:-1]) else []
        return ids

    def _cut_off(self, ids: list[int], one: Spelled, place: int) -> list[int]:
        """The response without the end that a template would write."""
        if one.chat and one.closes[place]:
            ends = [at for at, i in enumerate(ids) if i in self.end_ids]
            return ids[: ends[one.inner[place]]] if len(ends) > one.inner[place] else ids
        ids, closed = self.ends.closed(ids)
        return ids[:-1] if closed else ids

    def _apart(self, text: str) -> list[int]:
        """Ids of `text` in the middle of a text: some tokenizers put a space before whatever comes first."""

        def plain(words: str) -> list[int]:
            return list(self.tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])

        for anchor in ANCHORS:
            head, both = plain(anchor), plain(anchor + text)
            if both[: len(head)] == head:
                return both[len(head) :]
        return plain(text)


def _parting(prompt: str, text: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), min(len(prompt), len(text)))
    return (
        f"after {prompt[max(0, same - 20) : same]!r} comes {prompt[same : same + 30]!r} with the prompt alone, "
        f"but {text[same : same + 30]!r} with the response"
    )


def pieces_of(tokenizer: Any, prompt: Sequence[int], response: Sequence[int]) -> list[str]:
    """What each token of the response adds to the text: decoded alone, it may lose the space that it begins with."""
    ids, pieces = [*prompt[-5:], *response], []
    for end in range(len(ids) - len(response) + 1, len(ids) + 1):
        window = ids[max(0, end - 6) : end]  # the characters of a text have at most four bytes, hence tokens
        before, text = tokenizer.decode(window[:-1]), tokenizer.decode(window)
        pieces.append(text.removeprefix(before) if text.startswith(before) else tokenizer.decode(window[-1:]))
    return pieces
