"""A Modelfile for Ollama: where the weights are, the chat template as a Go template, stop texts and sampling settings.

Ollama does not read Jinja. The Go template is built from the texts that the model's chat template writes between the
messages of an example chat, and it is used only if it renders other chats as the chat template does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preftune.chat.template import ChatSettings, RefusedByTemplate, Template
from preftune.errors import ModelError
from preftune.model import load
from preftune.types import Message

MODELFILE = "Modelfile"
LONGEST_CONTEXT = 8192  # tokens; a longer one needs memory that Ollama would otherwise not allocate
PLAIN = "{{ .Prompt }}"  # of a model without a chat template
SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}


@dataclass(frozen=True, slots=True)
class Pieces:
    """The texts that a chat template writes around the contents of the messages.

    start, after_system   before and after the system message
    start_alone           before the first user message of a chat without a system message
    to_assistant          between a user message and the response to it
    to_user               between a response and the next user message
    generation            after the last user message
    """

    start: str
    after_system: str
    start_alone: str
    to_assistant: str
    to_user: str
    generation: str

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """Return the text of a chat, as the Go template writes it."""
        system = "".join(text for role, text in messages if role == "system")
        turns = [(role, text) for role, text in messages if role != "system"]
        out = f"{self.start}{system}{self.after_system}" if system else self.start_alone
        for number, (role, text) in enumerate(turns, start=1):
            last = number == len(turns)
            after = (self.generation if last else self.to_assistant) if role == "user" else "" if last else self.to_user
            out += text + after
        return out

    def go_template(self) -> str:
        """Return the Go template."""
        if_last = "{{ if eq (len (slice $.Messages $i)) 1 }}"
        parts = [
            "{{ if .System }}",
            *(self.start, "{{ .System }}", self.after_system),
            *("{{ else }}", self.start_alone, "{{ end }}"),
            "{{ range $i, $_ := .Messages }}",
            '{{ if eq .Role "user" }}{{ .Content }}',
            *(if_last, self.generation, "{{ else }}", self.to_assistant, "{{ end }}"),
            '{{ else if eq .Role "assistant" }}{{ .Content }}',
            *(if_last, "{{ else }}", self.to_user, "{{ end }}"),
            "{{ end }}{{ end }}",
        ]
        return "".join(parts)


EXAMPLES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Hello"),),
    (("system", "Be brief."), ("user", "Hello")),
    (("user", "One"), ("assistant", "Two"), ("user", "Three")),
    (("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D"), ("user", "E")),
    (("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")),
)


def pieces_of(template: Template, where: str) -> Pieces:
    """Return the pieces of a chat template. Raises ModelError if a template writes chats that they cannot render."""
    marks = ("prefmarka", "prefmarkb", "prefmarkc", "prefmarkd")
    chat = [("system", marks[0]), ("user", marks[1]), ("assistant", marks[2]), ("user", marks[3])]
    alone = split(render(template, chat[1:]), marks[1:])
    whole = split(render(template, chat), marks)
    examples = [chat for chat in EXAMPLES if whole or chat[0][0] != "system"]
    if alone:
        # without a place for a system message, Ollama writes it before the first user message
        whole = whole or [alone[0], "\n\n", *alone[1:]]
        pieces = Pieces(whole[0], whole[1], *alone)
        is_literal = not any(mark in text for text in [*whole, *alone] for mark in ("{{", '"""'))
        if is_literal and all(render(template, chat) == pieces.render(chat) for chat in examples):
            return pieces
    raise ModelError(
        "the chat template cannot be written as a Go template",
        where=where,
        why="it does more than to write texts between the messages",
        fix="use --to gguf with llama-server, which renders the chat template itself",
    )


def render(template: Template, chat: Sequence[tuple[str, str]]) -> str | None:
    """Return the text of a chat with the generation prompt; None if the template refuses it."""
    try:
        return template.render([Message(role, text) for role, text in chat], True)
    except RefusedByTemplate:
        return None


def split(text: str | None, marks: Sequence[str]) -> list[str] | None:
    """Return the texts before, between and after the marks; None unless each occurs once, in this order."""
    parts, rest = [], text
    for mark in marks:
        if rest is None or rest.count(mark) != 1:
            return None
        before, _, rest = rest.partition(mark)
        parts.append(before)
    return None if rest is None else [*parts, rest]


def without_bos(pieces: Pieces, tokenizer: Any) -> Pieces:
    """Remove the BOS text if the tokenizer adds the token itself, as Ollama then does."""
    bos, ids = tokenizer.bos_token, tokenizer("x").input_ids
    if not bos or not ids or ids[0] != tokenizer.bos_token_id:
        return pieces
    start, start_alone = pieces.start.removeprefix(bos), pieces.start_alone.removeprefix(bos)
    return replace(pieces, start=start, start_alone=start_alone)


def modelfile(weights: str, folder: Path, name: str) -> str:
    """Return the Modelfile for a model `folder` whose weights are at `weights`, a path relative to the Modelfile.

    Raises ModelError for a chat template that cannot be written as a Go template.
    """
    source = load.Source(str(folder))
    tokenizer = load.load_tokenizer(source)
    template = Template.of(tokenizer, ChatSettings.from_record(load.chat_record(source)))
    text = PLAIN
    if template.source:
        text = without_bos(pieces_of(template, str(folder)), tokenizer).go_template()
    dates = [f"# The date in TEMPLATE is fixed: {', '.join(template.dates.values())}"] if template.dates else []
    lines = [f"# ollama create {name} -f {MODELFILE}", *dates, f"FROM {weights}", f'TEMPLATE """{text}"""']
    for stop in stop_texts(source, tokenizer):
        lines.append(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}")
    longest = load.max_positions(load.load_config(source))
    if longest:
        lines.append(f"PARAMETER num_ctx {min(longest, LONGEST_CONTEXT)}")
    return "\n".join([*lines, *sampling_lines(folder)]) + "\n"


def stop_texts(source: load.Source, tokenizer: Any) -> list[str]:
    """Return the texts of the tokens that end a response."""
    ids = [*load.end_ids(source, tokenizer), *load.id_list(tokenizer.eos_token_id)]
    return list(dict.fromkeys(tokenizer.decode([i], skip_special_tokens=False) for i in ids))


def sampling_lines(folder: Path) -> list[str]:
    """Return the sampling settings of generation_config.json. A repetition penalty is always set, as Ollama has one."""
    try:
        config = dict(json.loads((folder / "generation_config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        config = {}
    lines = [f"PARAMETER {name} {config[key]}" for key, name in SAMPLING.items() if config.get(key) is not None]
    if config.get("do_sample") is False:
        lines = ["PARAMETER temperature 0"]
    return [*lines, f"PARAMETER repeat_penalty {config.get('repetition_penalty') or 1.0}"]
