"""Chat messages to text by the tokenizer's chat template: its arguments, its date, its reasoning, its refusals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from preftune.errors import ConfigError, ModelError, did_you_mean
from preftune.types import Message, message_dict

Thinking = Literal["template", "keep"]
Fields = tuple[tuple[str, str], ...]
#: Names under which a message carries its reasoning. transformers passes all of them as `reasoning_content`.
REASONING = ("reasoning_content", "reasoning", "thinking")
OPENED = re.compile(r"<think>\s*\Z")
PROBE = "preftune-probe"
NO_DATE = "preftune has no date for "
# Templates call strftime_now, and transformers passes no function to a template. This macro takes its place.
DATES = (
    "{% macro strftime_now(format) %}{{ preftune_dates[format] if format in preftune_dates "
    "else raise_exception('" + NO_DATE + "' ~ format) }}{% endmacro %}\n"
)


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How chat messages become text, from the config (sections `data` of config.schema and config.sampling).

    arguments           arguments of the template besides the messages (data.chat_template_kwargs)
    as_chat             text prompts and responses are sent through the template
    thinking            who writes the reasoning of a response: the template, or "keep", as it is in the data
    allow_dropped_text  a template may leave out part of a response
    moment              what strftime_now writes; None: the time at which the renderer is made
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    as_chat: bool = False
    thinking: Thinking = "template"
    allow_dropped_text: bool = False
    moment: datetime | None = None

    def record(self) -> dict[str, Any]:
        """The settings as JSON, to be saved with a model that was trained with them."""
        return {
            "chat_template_kwargs": dict(self.arguments),
            "as_chat": self.as_chat,
            "thinking": self.thinking,
            "allow_dropped_text": self.allow_dropped_text,
            "moment": self.moment.isoformat() if self.moment else None,
        }

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> ChatSettings:
        """The settings of a saved record; what it does not name has its default."""
        moment = record.get("moment")
        return ChatSettings(
            record.get("chat_template_kwargs") or {},
            bool(record.get("as_chat", False)),
            record.get("thinking") or "template",
            bool(record.get("allow_dropped_text", False)),
            moment=datetime.fromisoformat(moment) if moment else None,
        )


class RefusedByTemplate(Exception):
    """The chat template raised an error for these messages."""


@dataclass(frozen=True, slots=True)
class Template:
    """A tokenizer's chat template with its settings. `source` is empty for a tokenizer without one.

    `dates` holds the text of every date format that the template has asked for.
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
        """The messages as text, with the beginning of the answer for `generation`.

        Raises RefusedByTemplate where the template raises, ModelError without a template.
        """
        if not self.source:
            raise ModelError(
                "the data are chat messages, but the tokenizer has no chat template",
                where=str(self.tokenizer.name_or_path),
                fix="set data.chat_template (--chat-template) to dialogue or to a .jinja file, or give plain text data",
            )
        plain = [message_dict(m) for m in messages]
        dated = "strftime_now" in self.source
        while True:
            more = {"chat_template": DATES + self.source, "preftune_dates": self.dates} if dated else {}
            try:
                return str(
                    self.tokenizer.apply_chat_template(
                        plain, tokenize=False, add_generation_prompt=generation, **self.settings.arguments, **more
                    )
                )
            except Exception as error:  # templates raise whatever their author chose
                _, missing, form = str(error).partition(NO_DATE)
                if not missing or form in self.dates:
                    raise RefusedByTemplate(f"the chat template refuses these messages: {error}") from error
                self.dates[form] = self.moment.strftime(form)

    def ending(self, prompt: Sequence[Message], extra: Fields = ()) -> tuple[str, str]:
        """What the template writes before and after the content of an answer, counted from the prompt's rendering.

        `extra` are the answer's other fields: tool calls are often written after the content. Raises RefusedByTemplate
        where the answer's content cannot be found in the rendering.
        """
        before = self.render(prompt, generation=False)
        whole = self.render([*prompt, Message("assistant", PROBE, extra)], generation=False)
        head, found, tail = whole.rpartition(PROBE)
        if not found:
            raise RefusedByTemplate("the chat template does not write the content of an answer")
        return head.removeprefix(before) if head.startswith(before) else head, tail

    def closing(self, dialogue: Sequence[Message], marks: Sequence[str]) -> list[str]:
        """Those of the special tokens `marks` with which the template ends the turns of a dialogue.

        Of a turn in the middle, it is the first token after the content: others may begin the next turn.
        """
        probes = [replace(message, content=PROBE) for message in dialogue]
        *inner, last = self.render(probes, generation=False).split(PROBE)[1:] or [""]
        first = [mark for mark in marks if any(text.lstrip().startswith(mark) for text in inner)]
        return [*first, *(mark for mark in marks if mark in last)]

    def kept(self, prompt: Sequence[Message], text: str, answer: Message, ended: bool) -> str:
        """The answer after the rendered prompt `text` with its reasoning as it is in the data, closed by the template.

        Where the prompt opens `<think>`, the answer does not open it again. An answer without reasoning then closes it
        at once, as an empty block; only an answer that was cut off may leave it open. The template writes tool calls.
        """
        others = tuple(entry for entry in answer.extra if entry[0] not in REASONING)
        tail = self.ending(prompt, others)[1]
        return _with_reasoning(text, answer, ended) + (tail if answer.content.strip() else tail.lstrip("\n"))

    @property
    def note(self) -> str:
        """What to tell about a template that writes the date; empty for any other."""
        when = self.moment.strftime("%Y-%m-%d %H:%M:%S")
        return f"the chat template writes the date; it is {when} for the whole run" if self.dates else ""


def source_of(tokenizer: Any, settings: ChatSettings) -> str:
    """The text of the template in use; empty without one. Raises ModelError where several have no default."""
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


def require_used(source: str, arguments: Iterable[str], where: str) -> None:
    """Raises ConfigError for an argument that the template never reads."""
    words = set(re.findall(r"[A-Za-z_]\w*", source))
    for name in arguments:
        if not source:
            raise ConfigError(f"{name!r} is set, but the tokenizer has no chat template", where=where)
        if name not in words:
            near = [word for word in words if len(word) > 3]
            hint = did_you_mean(name, near)
            raise ConfigError(
                f"the chat template does not read {name!r}" + (f"; {hint}" if hint.startswith("did") else ""),
                where=where,
                why="the argument would have no effect",
            )


def opened(text: str) -> str:
    """The `<think>` with which a rendered prompt ends, if it does."""
    found = OPENED.search(text)
    return found.group() if found else ""


def reasoning_of(message: Message) -> str:
    """The reasoning in the fields of a message, empty without any."""
    fields = message_dict(message)
    return next((str(fields[name]) for name in REASONING if fields.get(name)), "")


def _with_reasoning(prompt: str, answer: Message, ended: bool) -> str:
    start, reasoning, content = opened(prompt), reasoning_of(answer), answer.content
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
