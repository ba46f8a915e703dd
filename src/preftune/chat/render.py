"""Convert preference groups to token ids: one BOS, the same prompt ids for all responses, and an EOS that is scored.

Plain text: the prompt's ids are `tokenizer(prompt)`; a response's ids are those that `tokenizer(prompt + response)`
adds. If the joint tokenisation changes the prompt's ids (a merge across the boundary), the response is tokenised
separately, without an artificial leading space.

Chat: the prompt is rendered with the generation prompt; the response is the text that the template adds to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import tokenizers

from preftune.chat.arguments import QUOTED, are_quoted, other_forms
from preftune.chat.conversation import conversation_of, encoded_conversations
from preftune.chat.faults import LEFT_OUT, NO_EXTENSION, TOOLS_LEFT_OUT, Fault, first_difference
from preftune.chat.long_texts import shorten
from preftune.chat.lost_text import find_missing, unwritten_links, unwritten_tools
from preftune.chat.prepare import prepared
from preftune.chat.response_ends import (
    BOS_INSIDE,
    BOS_TWICE,
    END_INSIDE,
    HAD_END,
    HAD_EOS,
    Ends,
    special_texts,
    splitting_tokens,
)
from preftune.chat.separate import tokenize_separately
from preftune.chat.template import ChatSettings, RefusedByTemplate, Template, open_think
from preftune.chat.texts import Encoded, Texts
from preftune.chat.turns import CONVERTED
from preftune.errors import ModelError
from preftune.formats.values import BadRow
from preftune.types import Message, PreferenceGroup, split_arguments, split_tools

CHUNK = 512  # groups that are tokenised in one call
PLAIN = (
    "the prompts are plain text, so the model's chat template is not applied; set data.as_chat=true "
    "(--as-chat) to apply it"
)


@dataclass(frozen=True)
class Renderer:
    """A tokenizer with its chat template, which converts groups to token ids.

    ends     BOS and the tokens that end a response
    suffix   number of tokens that the tokenizer adds at the end of a text
    special  texts of all special tokens
    splitting  {text of a special token that is tokenised independently of the text around it: its id}
    """

    tokenizer: Any
    template: Template
    ends: Ends
    suffix: int
    special: tuple[str, ...]
    splitting: Mapping[str, int]

    @staticmethod
    def of(tokenizer: Any, end_ids: Sequence[int] = (), settings: ChatSettings | None = None) -> Renderer:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no EOS token",
                where=str(tokenizer.name_or_path),
                why="a model that is not trained on the end of a response does not learn to stop",
                fix='set "eos_token" in tokenizer_config.json',
            )
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a")["input_ids"]
        starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
        suffix = len(full) - starts[0] - len(bare) if starts else 0
        bos = tokenizer.bos_token_id
        ends = Ends.of(tokenizer, end_ids, writes_bos=bos is not None and bos in full[: starts[0] if starts else 1])
        template = Template.of(tokenizer, settings or ChatSettings())
        splitting = splitting_tokens(tokenizer, f"{template.source} {tokenizer.bos_token} {tokenizer.eos_token}")
        return Renderer(tokenizer, template, ends, suffix, special_texts(tokenizer), splitting)

    @property
    def end_ids(self) -> frozenset[int]:
        return self.ends.end_ids

    @property
    def settings(self) -> ChatSettings:
        """The chat settings, with the time that the template has written, if any."""
        return replace(self.template.settings, moment=self.template.moment if self.template.dates else None)

    def identity(self) -> list[Any] | None:
        """Return all that decides the ids of a group, as JSON types. None for a tokenizer that is written in Python."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        return [
            hashlib.sha256(backend.to_str().encode("utf-8", "surrogatepass")).hexdigest(),
            [type(self.tokenizer).__qualname__, tokenizers.__version__, version("transformers")],
            [special, sorted(self.end_ids), getattr(self.tokenizer, "split_special_tokens", False)],
            [
                self.template.source,
                {**self.template.settings.record(), "moment": None},
                self.template.dates_in_source(),
            ],
        ]

    def encode(self, groups: Sequence[PreferenceGroup]) -> list[Encoded]:
        """Return the ids of all groups."""
        return [encoded for _, encoded in self.encode_all(groups)]

    def encode_all(
        self, groups: Sequence[PreferenceGroup], max_tokens: int | None = None
    ) -> Iterator[tuple[PreferenceGroup, Encoded]]:
        """Yield each group with its ids. A chunk is rendered while another thread tokenises the one before.

        `max_tokens`: of longer sequences, only the ids that truncation to this length can keep are exact.
        """
        with ThreadPoolExecutor(1) as thread:
            waiting: tuple[list[PreferenceGroup], list[Texts], Future[list[list[int]]]] | None = None
            for begin in range(0, len(groups), CHUNK):
                chunk = list(groups[begin : begin + CHUNK])
                rendered = [self._render(group) for group in chunk]
                if max_tokens is not None:
                    for one in rendered:
                        shorten(one, max_tokens, self.ends, self.tokenizer)
                future = thread.submit(self._tokenize, self._texts_of(rendered))
                if waiting:
                    yield from zip(waiting[0], self._encoded(*waiting), strict=True)
                waiting = (chunk, rendered, future)
            if waiting:
                yield from zip(waiting[0], self._encoded(*waiting), strict=True)

    def _encoded(
        self, groups: Sequence[PreferenceGroup], rendered: Sequence[Texts], ids: Future[list[list[int]]]
    ) -> list[Encoded]:
        """Return the encoded groups of a chunk, given the ids of `_texts_of`."""
        header = self._header_note(groups, rendered)
        tokenized = iter(ids.result())
        split: list[tuple[list[int], list[list[int] | None]]] = []
        for one in (one for one in rendered if not one.fault):
            if one.chat:
                one.notes += [note for note in (self.template.note, header) if note]
            prompt = next(tokenized)
            start = prompt[self._length_before(one, prompt) :]
            joint = [next(tokenized) for _ in one.responses]
            split.append((prompt, [ids[len(start) :] if ids[: len(start)] == start else None for ids in joint]))
        valid = iter(split)
        separate = [
            text
            for one, (_, added) in zip((one for one in rendered if not one.fault), split, strict=True)
            for text, ids in zip(one.responses, added, strict=True)
            if ids is None
        ]
        alone = iter(tokenize_separately(separate, lambda texts: self._ids(texts, False)))
        return [self._one_encoded(group, one, valid, alone) for group, one in zip(groups, rendered, strict=True)]

    def _one_encoded(self, group: PreferenceGroup, one: Texts, split: Iterator[Any], alone: Any) -> Encoded:
        if one.fault:
            return Encoded([], [], (), one.fault)
        prompt, added = next(split)
        encoded = self._assemble(group, one, prompt, added, alone)
        return encoded_conversations(self.tokenizer, self.ends, group, one) if one.conversations else encoded

    def _texts_of(self, rendered: Sequence[Texts]) -> list[tuple[str, bool]]:
        """Return what is tokenised of a chunk: for each group the prompt, and the prompt with each response.

        A special token is tokenised alone, and so is the text after it. So the prompt of a chat is only repeated from
        its last special token on.
        """
        texts = []
        for one in (one for one in rendered if not one.fault):
            if one.chat:
                one.repeated_from = max((one.prompt.rfind(token) for token in self.splitting), default=-1)
            end = one.prompt[max(one.repeated_from, 0) :]
            texts += [(one.prompt, one.chat), *((end + response, one.chat) for response in one.responses)]
        return texts

    def _length_before(self, one: Texts, prompt: Sequence[int]) -> int:
        """Return the number of tokens before the part of the prompt that is repeated with each response."""
        if one.repeated_from <= 0:
            return 0
        token = next(t for t in self.splitting if one.prompt.startswith(t, one.repeated_from))
        number = self.splitting[token]
        return len(prompt) - 1 - list(reversed(prompt)).index(number)

    def _render(self, group: PreferenceGroup) -> Texts:
        try:
            was_text, group = isinstance(group.prompt, str), prepared(group, self.template)
            if isinstance(group.prompt, str):
                return self._render_text(group)
            one = self._render_chat(group)
            one.notes += [CONVERTED] if was_text and self.template.settings.as_chat == "auto" else []
            return self._render_unquoted(group, one) if QUOTED in one.notes else one
        except BadRow as fault:
            return Texts("", [], fault=Fault(str(fault)))
        except RefusedByTemplate as fault:
            for other, note in other_forms(group):
                with suppress(RefusedByTemplate):
                    one = self._render_chat(other)
                    one.notes.append(note)
                    return one
            return Texts("", [], fault=Fault(str(fault)))

    def _render_unquoted(self, group: PreferenceGroup, one: Texts) -> Texts:
        """Return the group with the form of tool-call arguments that the template writes as JSON; `one` without it."""
        for other, note in other_forms(group):
            with suppress(RefusedByTemplate):
                changed = self._render_chat(other)
                if QUOTED not in changed.notes and not changed.fault:
                    changed.notes.append(note)
                    return changed
        return one

    def _render_text(self, group: PreferenceGroup) -> Texts:
        """Return plain text without the BOS that the tokenizer adds."""
        prompt, twice = self.ends.without_bos(str(group.prompt))
        notes = [f"the prompt {BOS_TWICE}"] if twice else []
        if group.prompt and self.template.source and not any(token in str(group.prompt) for token in self.special):
            notes.append(PLAIN)
        responses = []
        for response in map(str, group.responses):
            text, had_bos = self.ends.without_bos(response, first=not group.prompt)
            responses.append(text)
            if had_bos:
                notes.append("a response began with BOS; it was removed" if group.prompt else f"the text {BOS_TWICE}")
            if self.ends.bos and self.ends.bos in text and self.ends.bos not in self.ends.ends:
                notes.append(BOS_INSIDE)
        return Texts(prompt, responses, notes=notes)

    def _render_chat(self, group: PreferenceGroup) -> Texts:
        """Render the prompt with the template, and for each response the text that it adds to the prompt."""
        one, messages = self._render_prompt(group.prompt)  # type: ignore[arg-type]
        prompt, notes = one.prompt, one.notes
        if one.fault:
            return one
        settings = self.template.settings
        if settings.thinking == "unscored" or any(len(response) > 1 for response in group.responses):
            return self._render_conversations(group, messages, one)
        keeps = settings.thinking == "keep" or (settings.thinking == "drop" and bool(open_think(prompt)))
        for response, ended in zip(group.responses, group.ended or (True,) * len(group.responses), strict=True):
            (answer,) = self._without_duplicates(response, notes, before=messages)  # type: ignore[arg-type]
            if keeps:
                text = self.template.with_reasoning(messages, prompt, answer, ended)
            else:
                whole = self.template.render((*messages, answer), generation=False)
                if not whole.startswith(prompt):
                    return replace(one, fault=Fault(NO_EXTENSION, first_difference(prompt, whole)))
                text = whole[len(prompt) :]
            missing = find_missing((answer,), open_think(prompt) + text)
            if missing and not settings.allow_dropped_text:
                return replace(one, fault=Fault(LEFT_OUT, missing=missing, rendered=text))
            links = unwritten_links(answer, text) if answer.extra else []
            notes += [f"the chat template does not write {', '.join(links)} of the response"] if links else []
            notes += [QUOTED] if are_quoted(answer, text) else []
            notes += [LEFT_OUT] if missing else []
            notes += [BOS_INSIDE] if self.ends.has_bos(answer.content) else []
            one.dropped = one.dropped or bool(missing)
            head, tail = self.ends.split_after_content(text, answer.content.strip())
            trailing = "" if answer.extra else self.ends.text_after_end(tail)
            if trailing:  # some templates always write a generation prompt
                notes.append(f"the chat template writes {trailing!r} after the end of the response; it is not scored")
                text, tail = text.removesuffix(trailing), tail.removesuffix(trailing)
            one.inner.append(self.ends.count(head))
            one.closes.append(self.ends.count(tail) > 0)
            one.responses.append(text)
        return one

    def _render_prompt(self, messages: tuple[Message, ...]) -> tuple[Texts, tuple[Message, ...]]:
        """Render a prompt. Return it with its messages, without duplicate BOS and end tokens."""
        notes: list[str] = []
        messages = self._without_duplicates(messages, notes)
        prompt = self.template.render(messages, generation=True)
        one = Texts(prompt, [], chat=True, notes=notes)
        written, tools = split_tools(split_arguments(messages)[0])
        lost = unwritten_tools(tools, prompt)
        if lost and not self.template.settings.allow_dropped_text:
            one.fault = Fault(TOOLS_LEFT_OUT, ", ".join(lost))
        if lost:
            notes.append(TOOLS_LEFT_OUT)
        if any(are_quoted(message, prompt) for message in written if message.extra):
            notes.append(QUOTED)
        if find_missing(written, prompt):
            notes.append("the chat template removes part of the prompt")
        if any("name" in unwritten_links(m, prompt) for m in written if m.extra and m.role != "tool"):
            notes.append("the chat template does not write the names of the prompt's messages")
        return one, messages

    def _render_conversations(self, group: PreferenceGroup, messages: tuple[Message, ...], one: Texts) -> Texts:
        """Render each response within its conversation, because only a part of it is scored."""
        for response in group.responses:
            turns = self._without_duplicates(response, one.notes, before=messages)  # type: ignore[arg-type]
            conversation = conversation_of(self.template, self.ends, messages, turns, one.notes)
            if isinstance(conversation, Fault):
                return replace(one, fault=conversation)
            one.conversations.append(conversation)
            rendered = conversation.text
            one.notes += [QUOTED] if any(are_quoted(turn, rendered) for turn in turns if turn.extra) else []
            one.notes += [BOS_INSIDE] if any(self.ends.has_bos(turn.content) for turn in turns) else []
            one.dropped = one.dropped or LEFT_OUT in one.notes
        return one

    def _without_duplicates(
        self, messages: tuple[Message, ...], notes: list[str], before: tuple[Message, ...] = ()
    ) -> tuple[Message, ...]:
        """Remove BOS from the beginning, and the template's end tokens from the end, of the contents of `messages`."""
        next_turn = () if before else (Message("assistant", ""),)
        result: list[Message] = []
        for place, message in enumerate(messages):
            content, had_bos = self.ends.without_bos(message.content, first=False)
            if had_bos:
                notes.append("a message began with BOS; it was removed")
            if content.rstrip().endswith(self.special):
                dialogue = (*before, *result, replace(message, content=content), *messages[place + 1 :])
                turn = self.template.turn_ends((*dialogue, *next_turn), self.special)
                without = self.ends.without_end(content, self.template.render(dialogue, generation=False), turn)
                notes += [HAD_END] if without is not content else []
                content = without
            result.append(message if content is message.content else replace(message, content=content))
        return tuple(result)

    def _header_note(self, groups: Sequence[PreferenceGroup], rendered: Sequence[Texts]) -> str:
        """Return a note if the template has no generation prompt, so that the model must generate the header."""
        group = next((g for g, one in zip(groups, rendered, strict=True) if one.chat and not one.fault), None)
        if group is None:
            return ""
        try:
            prompt = prepared(group, self.template).prompt
            messages = self._without_duplicates(prompt, [])  # type: ignore[arg-type]
            if self.template.render(messages, generation=True) != self.template.render(messages, generation=False):
                return ""
            header = self.template.around_content(messages)[0].strip()
        except RefusedByTemplate:
            return ""
        note = f"the chat template has no generation prompt; its header {header!r} is scored as part of the response"
        return note if header else ""

    def _tokenize(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Tokenise (text, is_chat). Special tokens are added to plain text; a template writes them itself."""
        result: list[list[int]] = [[]] * len(texts)
        for chat in (False, True):
            where = [i for i, (_, is_chat) in enumerate(texts) if is_chat == chat]
            for i, ids in zip(where, self._ids([texts[i][0] for i in where], not chat), strict=True):
                result[i] = ids if chat or not self.suffix else ids[: -self.suffix]
        return result

    def _ids(self, texts: Sequence[str], special_tokens: bool) -> list[list[int]]:
        """Tokenise texts in one call, which runs in parallel."""
        if not texts:
            return []
        output = self.tokenizer(
            list(texts), add_special_tokens=special_tokens, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = output["input_ids"]
        return ids

    def _assemble(
        self, group: PreferenceGroup, one: Texts, prompt_ids: list[int], added: Sequence[list[int] | None], alone: Any
    ) -> Encoded:
        """Return a group, given the ids that each response adds to the prompt; None: take the next ids of `alone`."""
        notes = one.notes
        response_ids = []
        for place, ids in enumerate(added):
            if ids is None:
                ids = next(alone)
                notes.append("a token spans the end of the prompt; the response was tokenised separately")
            if group.ended and not group.ended[place]:
                notes.append("a response was cut off during sampling; no EOS was added")
                ids = self._without_eos(ids, one, place)
            else:
                ids = self._with_eos(ids, one, place, notes)
            response_ids.append(ids)
        bos = self.tokenizer.bos_token_id
        if bos is not None and prompt_ids[:2] == [bos, bos]:
            while prompt_ids[:2] == [bos, bos]:
                prompt_ids = prompt_ids[1:]
            notes.append(f"the prompt {BOS_TWICE}")
        return Encoded(prompt_ids, response_ids, tuple(dict.fromkeys(notes)), dropped=one.dropped)

    def _with_eos(self, ids: list[int], one: Texts, place: int, notes: list[str]) -> list[int]:
        """Return the response with the end token of its text or template, or with EOS added if it has none."""
        if one.chat and one.closes[place]:
            notes += [END_INSIDE] if one.inner[place] else []
            return ids
        ids, closed = self.ends.cut_after_end(ids)
        if one.chat and not closed:
            notes.append("the chat template does not write an end token after the response; EOS was added")
        elif closed:
            notes.append(HAD_EOS)
        ids = ids if closed else [*ids, self.tokenizer.eos_token_id]
        notes += [END_INSIDE] if self.end_ids.intersection(ids[:-1]) else []
        return ids

    def _without_eos(self, ids: list[int], one: Texts, place: int) -> list[int]:
        """Return the response, which was cut off, without the end token of its text or template."""
        if one.chat and one.closes[place]:
            ends = [at for at, i in enumerate(ids) if i in self.end_ids]
            return ids[: ends[one.inner[place]]] if len(ends) > one.inner[place] else ids
        ids, closed = self.ends.cut_after_end(ids)
        return ids[:-1] if closed else ids


def pieces_of(tokenizer: Any, prompt: Sequence[int], response: Sequence[int]) -> list[str]:
    """Return the text that each response token adds. A token decoded alone may lose its leading space."""
    ids, pieces = [*prompt[-5:], *response], []
    for end in range(len(ids) - len(response) + 1, len(ids) + 1):
        window = ids[max(0, end - 6) : end]  # a character has at most four bytes, hence at most four tokens
        before, text = tokenizer.decode(window[:-1]), tokenizer.decode(window)
        pieces.append(text.removeprefix(before) if text.startswith(before) else tokenizer.decode(window[-1:]))
    return pieces
