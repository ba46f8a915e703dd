"""Render chat messages with the tokenizer's chat template: arguments, the date, reasoning and template errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, Literal

from preftune.chat.bounded import bounded
from preftune.config.values import check_template_arguments
from preftune.errors import ConfigError, ModelError, did_you_mean
from preftune.types import ARGUMENTS, TOOLS, Message, message_dict, split_arguments, split_tools

Thinking = Literal["template", "keep", "unscored", "drop"]
Turns = Literal["all", "last"]
AsChat = bool | Literal["auto"]
SystemMessage = Literal["template", "merge"]
Fields = tuple[tuple[str, str], ...]
#: Fields of a message that can hold its reasoning. transformers passes each of them as `reasoning_content`.
REASONING = ("reasoning_content", "reasoning", "thinking")
OPENED = re.compile(r"<think>\s*\Z")
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
PROBE = "preftune-probe"
DATE_CALL = re.compile(r"""strftime_now\s*\(\s*(["'])(.*?)\1\s*\)""")
NO_DATE = "preftune has no date for "
# transformers passes its own strftime_now, which writes the current time. This macro replaces it with fixed dates.
DATES = (
    "{% macro strftime_now(format) %}{{ preftune_dates[format] if format in preftune_dates "
    "else raise_exception('" + NO_DATE + "' ~ format) }}{% endmacro %}\n"
)


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How chat messages are rendered, from the config (sections `data` of config.schema and config.sampling).

    arguments           arguments of the template in addition to the messages (data.chat_template_kwargs)
    as_chat             apply the template to text prompts and responses; "auto": to HH-RLHF transcripts, if the
                        tokenizer has a template
    thinking            "template": the template writes the reasoning of a response; "keep": use it as it is in the
                        data; "unscored": the same, but only as context; "drop": remove it from all messages
    scored_turns        which assistant turns of a response of several messages are scored
    system_message      "template": the template writes it; "merge": put it before the next user message
    allow_dropped_text  the template may leave out part of a response
    moment              the time that strftime_now writes; None: the time at which the renderer is created
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    as_chat: AsChat = "auto"
    thinking: Thinking = "template"
    allow_dropped_text: bool = False
    moment: datetime | None = None
    scored_turns: Turns = "all"
    system_message: SystemMessage = "template"

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON, to save with the trained model."""
        return {
            "chat_template_kwargs": dict(self.arguments),
            "as_chat": self.as_chat,
            "thinking": self.thinking,
            "allow_dropped_text": self.allow_dropped_text,
            "moment": self.moment.isoformat() if self.moment else None,
            "scored_turns": self.scored_turns,
            "system_message": self.system_message,
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> ChatSettings:
        """Return the settings of a saved record; missing keys get their default values."""
        moment = record.get("moment")
        return ChatSettings(
            record.get("chat_template_kwargs") or {},
            record.get("as_chat", "auto"),
            record.get("thinking") or "template",
            bool(record.get("allow_dropped_text", False)),
            moment=datetime.fromisoformat(moment) if moment else None,
            scored_turns=record.get("scored_turns") or "all",
            system_message=record.get("system_message") or "template",
        )


class RefusedByTemplate(Exception):
    """The chat template raised an error for these messages."""


@dataclass(frozen=True, slots=True)
class Template:
    """A tokenizer's chat template with its settings. `source` is "" for a tokenizer without a template.

    `dates` maps every date format that the template has used to its text.
    """

    tokenizer: Any
    settings: ChatSettings
    source: str
    moment: datetime
    dates: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(tokenizer: Any, settings: ChatSettings) -> Template:
        return Template(tokenizer, settings, source_of(tokenizer, settings), settings.moment or datetime.now())

    def render(self, messages: Sequence[Message], generation: bool) -> str:
        """Render the messages as text, with the generation prompt if `generation`.

        Raises RefusedByTemplate if the template raises an error, and ModelError without a template.
        """
        if not self.source:
            raise ModelError(
                "the data are chat messages, but the tokenizer has no chat template",
                where=str(self.tokenizer.name_or_path),
                fix="set data.chat_template (--chat-template) to dialogue or to a .jinja file, or use plain text data",
            )
        try:
            messages, own = self._split(messages)
        except ValueError as error:
            raise RefusedByTemplate(str(error)) from error
        plain = [message_dict(m) for m in messages]
        arguments = {**self.settings.arguments, **own}
        dated = "strftime_now" in self.source
        while True:
            dates = {"chat_template": DATES + self.source, "preftune_dates": self.dates} if dated else {}
            apply = partial(self.tokenizer.apply_chat_template, plain, tokenize=False, add_generation_prompt=generation)
            try:
                return str(bounded(partial(apply, **arguments, **dates), self.tokenizer.name_or_path))
            except ModelError:
                raise
            except Exception as error:  # a template can raise any exception
                _, needs_date, date_format = str(error).partition(NO_DATE)
                if not needs_date or date_format in self.dates:
                    raise RefusedByTemplate(f"the chat template refuses these messages: {error}") from error
                self.dates[date_format] = self.moment.strftime(date_format)

    def generated(self, messages: Sequence[Message], rendered: str) -> list[tuple[int, int]]:
        """Return the parts of the `rendered` messages that the template marks with {% generation %}, in order."""
        if not GENERATION.search(self.source):
            return []
        from transformers.utils.chat_template_utils import render_jinja_template

        plain, own = self._split(messages)
        source = DATES + self.source if "strftime_now" in self.source else self.source
        arguments = {**self.tokenizer.special_tokens_map, **self.settings.arguments, "preftune_dates": self.dates}
        render = partial(
            render_jinja_template,
            conversations=[[message_dict(m) for m in plain]],
            chat_template=source,
            return_assistant_tokens_mask=True,
            add_generation_prompt=False,
            **{**arguments, **own},
        )
        texts, marked = bounded(render, self.tokenizer.name_or_path)
        return [(int(begin), int(end)) for begin, end in marked[0]] if texts == [rendered] else []

    def _split(self, messages: Sequence[Message]) -> tuple[tuple[Message, ...], dict[str, Any]]:
        """Return the messages without their tools and template arguments, and these as arguments of the template."""
        messages, arguments = split_arguments(messages)
        check_template_arguments(arguments)
        if unread := [name for name in arguments if name not in words_of(self.source)]:
            raise ValueError(
                f"the chat template does not read {', '.join(map(repr, unread))} of {ARGUMENTS}; omit the column with "
                f"data.ignore=[{ARGUMENTS}]"
            )
        messages, tools = split_tools(messages)
        return messages, {**arguments, **({TOOLS: tools} if tools else {})}

    def around_content(self, prompt: Sequence[Message], extra: Fields = ()) -> tuple[str, str]:
        """Return the text that the template writes between prompt and content of a response, and after the content.

        `extra` are the other fields of the response: many templates write tool calls after the content. Raises
        RefusedByTemplate if the template does not write the content of a response.
        """
        before = self.render(prompt, generation=False)
        whole = self.render([*prompt, Message("assistant", PROBE, extra)], generation=False)
        head, content, tail = whole.rpartition(PROBE)
        if not content:
            raise RefusedByTemplate("the chat template does not write the content of a response")
        return head.removeprefix(before) if head.startswith(before) else head, tail

    def turn_ends(self, dialogue: Sequence[Message], special: Sequence[str]) -> list[str]:
        """Return those of the `special` tokens with which the template ends the turns of a dialogue.

        For all turns but the last, only the first token after the content counts: others may begin the next turn.
        """
        probes = [replace(message, content=PROBE) for message in dialogue]
        *inner, last = self.render(probes, generation=False).split(PROBE)[1:] or [""]
        first = [token for token in special if any(text.lstrip().startswith(token) for text in inner)]
        return [*first, *(token for token in special if token in last)]

    def with_reasoning(self, prompt: Sequence[Message], text: str, answer: Message, ended: bool) -> str:
        """Render the response after the rendered prompt `text`, with its reasoning unchanged.

        The template writes tool calls and the end of the turn. If the prompt opens `<think>`, the response does not
        open it again. A response without reasoning closes it immediately, unless the response was cut off.
        """
        others = tuple(entry for entry in answer.extra if entry[0] not in REASONING)
        tail = self.around_content(prompt, others)[1]
        return _reasoning_and_content(text, answer, ended) + (tail if answer.content.strip() else tail.lstrip("\n"))

    def dates_in_source(self) -> list[str]:
        """Return the dates that the template may write, or the moment if its date formats are not literals."""
        formats = [match[2] for match in DATE_CALL.finditer(self.source)]
        if len(formats) < len(re.findall(r"strftime_now\s*\(", self.source)):
            return [self.moment.isoformat()]
        return [self.moment.strftime(text) for text in formats]

    @property
    def note(self) -> str:
        """A note for a template that writes the date; "" for any other template."""
        when = self.moment.strftime("%Y-%m-%d %H:%M:%S")
        return f"the chat template writes the date; the whole run uses {when}" if self.dates else ""


def source_of(tokenizer: Any, settings: ChatSettings) -> str:
    """Return the text of the template, or "" without one. Raises ModelError for several templates without a default."""
    if not tokenizer.chat_template:
        return ""
    try:
        return str(tokenizer.get_chat_template(None, settings.arguments.get("tools")))
    except ValueError as error:
        raise ModelError(
            f"the tokenizer has several chat templates and no default: {', '.join(tokenizer.chat_template)}",
            where=str(tokenizer.name_or_path),
            fix="set data.chat_template to a .jinja file",
        ) from error


@lru_cache(maxsize=16)
def words_of(source: str) -> frozenset[str]:
    """Return the words of a template, among them the names of all arguments that it reads."""
    return frozenset(re.findall(r"[A-Za-z_]\w*", source))


def require_used(source: str, arguments: Iterable[str], where: str) -> None:
    """Raise ConfigError for an argument that the template does not read."""
    words = words_of(source)
    for name in arguments:
        if not source:
            fix = f"remove {name!r}, or set a chat template (data.chat_template or --chat-template)"
            raise ConfigError(f"{name!r} is set, but the tokenizer has no chat template", where=where, fix=fix)
        if name not in words:
            hint = did_you_mean(name, [word for word in words if len(word) > 3])
            raise ConfigError(
                f"the chat template does not read {name!r}" + (f"; {hint}" if hint.startswith("did") else ""),
                where=where,
                why="the argument would have no effect",
                fix=f"remove {name!r}, or use the name of an argument that the template reads",
            )


def open_think(text: str) -> str:
    """Return the `<think>` and white space at the end of a rendered prompt, or ""."""
    match = OPENED.search(text)
    return match.group() if match else ""


def _reasoning_and_content(prompt: str, answer: Message, ended: bool) -> str:
    start, content, fields = open_think(prompt), answer.content, message_dict(answer)
    reasoning = next((str(fields[name]) for name in REASONING if fields.get(name)), "")
    if reasoning:
        head = "" if start else "<think>\n"
        return head + reasoning.strip("\n") + "\n</think>\n\n" + content.lstrip("\n")
    if not start:
        return content
    if content.lstrip().startswith("<think>"):
        rest = content.lstrip().removeprefix("<think>")
        return rest.removeprefix("\n") if start.endswith("\n") else rest
    if "</think>" in content or not ended:
        return content
    return f"\n</think>\n\n{content}"
