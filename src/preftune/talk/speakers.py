"""Open the models that a chat talks to, and let one of them answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from preftune.chat.open import ChatOptions, renderer_of
from preftune.chat.render import Renderer
from preftune.chat.template import RefusedByTemplate, Template, open_think
from preftune.client import Client
from preftune.config.schema import ModelConfig
from preftune.errors import ConfigError, DataError
from preftune.lifecycle.open_policy import Opened, chat_record_of, open_policy
from preftune.lifecycle.policy import compute_dtype, device_of
from preftune.model import load
from preftune.model.generate import Sampling, continuation, end_ids
from preftune.model.memory import free_memory, out_of_memory
from preftune.model.stream import Stream, text_so_far
from preftune.talk.dialogue import Answer
from preftune.talk.remote import Remote, open_remote
from preftune.talk.remote import speak as from_server
from preftune.types import Message, PreferenceGroup, Text


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model with its name, its renderer and the cache of its last answer.

    limit   the number of tokens in its context; None without a limit
    """

    name: str
    stream: Stream
    renderer: Renderer
    limit: int | None

    @property
    def tokenizer(self) -> Any:
        return self.renderer.tokenizer

    @property
    def has_template(self) -> bool:
        return bool(self.renderer.template.source)


Partner = Speaker | Remote


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """Which models to open, and how: see the options of `preftune chat`.

    servers  the server of each model; None for a model that is loaded here
    """

    models: tuple[str, ...]
    dtype: str = "auto"
    chat_template: str | None = None
    chat: ChatOptions = field(default_factory=ChatOptions)
    servers: tuple[Client | None, ...] = (None, None)


def open_speakers(options: OpenOptions, say: Callable[[str], None]) -> list[Partner]:
    """Load one or two models, or find them on their servers.

    A model without a chat template gets the template of the other one. A model that is named twice is loaded once.
    """
    remote = [open_remote(server, say) if server else None for server in options.servers[: len(options.models)]]
    if not any(remote):
        return list(_open_local(options, WHERE, say))
    speakers: list[Partner] = []
    for path, place, one in zip(options.models, WHERE, remote, strict=False):
        speakers.extend([one] if one else _open_local(replace(options, models=(path,)), (place,), say))
    return speakers


WHERE = ("preftune chat", "--beside")


def _open_local(options: OpenOptions, where: Sequence[str], say: Callable[[str], None]) -> list[Speaker]:
    """Load the models of `options`. `where` are the places that name them, for errors."""
    opened: list[Opened] = []
    for path, place in zip(options.models, where, strict=False):
        if opened and path == options.models[0]:
            opened.append(opened[0])
            continue
        say(f"loading the model {path}")
        dtype = compute_dtype(ModelConfig(path=path, dtype=options.dtype))  # type: ignore[arg-type]
        opened.append(open_policy(path, place, dtype, device_of(None)))
    speakers = [_speaker(one, options) for one in opened]
    if len(speakers) == 2 and speakers[0].has_template != speakers[1].has_template:
        lender = 0 if speakers[0].has_template else 1
        other = 1 - lender
        say(f"{speakers[other].name} has no chat template; it uses that of {speakers[lender].name}")
        tokenizer = speakers[other].tokenizer
        tokenizer.chat_template = speakers[lender].renderer.template.source
        record = chat_record_of(options.models[lender], where[lender])
        speakers[other] = _speaker(opened[other], options, tokenizer, record)
    return speakers


def _speaker(
    opened: Opened, options: OpenOptions, tokenizer: Any = None, record: dict[str, Any] | None = None
) -> Speaker:
    renderer = renderer_of(opened.source, options.chat_template, options.chat, tokenizer=tokenizer, record=record)
    template = renderer.template  # the chat makes the messages itself, and the text of a plain dialogue stays a text
    renderer = replace(renderer, template=replace(template, settings=replace(template.settings, as_chat=False)))
    ends = renderer.end_ids | frozenset(end_ids(opened.model, renderer.tokenizer)) | turn_end(renderer)
    limit = load.max_positions(opened.model.config)
    return Speaker(opened.name, Stream(opened.model, ends), renderer, limit)


def turn_end(renderer: Renderer) -> frozenset[int]:
    """Return the id of the special token with which the chat template ends an answer; empty if there is none."""
    template: Template = renderer.template
    if not template.source:
        return frozenset()
    try:
        tail = template.around_content((Message("user", "Hello"),))[1].lstrip()
    except RefusedByTemplate:
        return frozenset()
    texts = [text for text in renderer.special if text and tail.startswith(text)]
    longest = max(texts, key=len, default="")
    return frozenset([renderer.tokenizer.convert_tokens_to_ids(longest)] if longest else [])


def encode(speaker: Partner, prompt: Text) -> tuple[list[int], tuple[str, ...]]:
    """Return the token ids of a prompt, and notes about changes to its text. Raises DataError if it is refused.

    A server renders prompts itself, so there are no ids for it.
    """
    if isinstance(speaker, Remote):
        return [], ()
    (encoded,) = speaker.renderer.encode([PreferenceGroup(prompt, ())])
    if encoded.fault:
        raise DataError(str(encoded.fault.what), where=speaker.name, fix="change the message, or remove it with /undo")
    return encoded.prompt_ids, encoded.notes


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that fits into the context of all models.

    ids      the token ids for each model
    room     most tokens of the answer
    dropped  the number of oldest turns that were left out
    notes    changes to the text of the prompt
    """

    prompt: Text
    ids: tuple[list[int], ...]
    room: int
    dropped: int
    notes: tuple[str, ...]


def fit(speakers: Sequence[Partner], prompt_from: Callable[[int], Text], turns: int, wanted: int) -> Fitted:
    """Return the prompt without as many of the oldest `turns` as leaves room for `wanted` tokens of an answer.

    prompt_from(n) is the prompt without the n oldest turns. Raises DataError if the new text alone is too long.
    """
    limit = min((speaker.limit for speaker in speakers if speaker.limit), default=None)
    if limit:
        wanted = min(wanted, max(1, limit // 2))

    def attempt(dropped: int) -> Fitted:
        prompt = prompt_from(dropped)
        encoded = [encode(speaker, prompt) for speaker in speakers]
        longest = max(len(ids) for ids, _ in encoded)
        room = wanted if limit is None else min(wanted, limit - longest)
        notes = tuple(dict.fromkeys(note for _, notes in encoded for note in notes))
        return Fitted(prompt, tuple(ids for ids, _ in encoded), room, dropped, notes)

    best = attempt(0)
    if best.room == wanted:
        return best
    low, high, best = 1, turns, attempt(turns)
    while low < high and best.room >= 1:  # the fewest turns to drop
        middle = (low + high) // 2
        candidate = attempt(middle)
        if candidate.room == wanted:
            high, best = middle, candidate
        else:
            low = middle + 1
    if best.room < 1:
        tokens = max(map(len, best.ids))
        what = f"the message is too long: it has {tokens} tokens, and the model's context has {limit}"
        raise DataError(what, where="chat", fix="shorten the message")
    return best


def answer(
    speaker: Partner, prompt: Text, ids: Sequence[int], sampling: Sampling, k: int, stopped: Callable[[], bool]
) -> Iterator[Answer]:
    """Yield the answer to a prompt so far, as it grows. `ids` are the token ids of the prompt for this model."""
    if isinstance(speaker, Remote):
        return from_server(speaker, prompt, sampling, k, stopped)
    return speak(speaker, ids, sampling, k, stopped)


def speak(
    speaker: Speaker, ids: Sequence[int], sampling: Sampling, k: int, stopped: Callable[[], bool]
) -> Iterator[Answer]:
    """Yield the answer so far after each token, and at last the whole answer. Raises ConfigError without memory.

    `seconds` is the time that the model took, without that of the caller.
    """
    response: list[int] = []
    seconds, begin, ended, full = 0.0, time.perf_counter(), False, False
    opened = open_think(speaker.tokenizer.decode(list(ids[-4:])))
    try:
        for token in speaker.stream.respond(ids, sampling, k, stopped):
            response.append(token)
            ended = token in speaker.stream.ends
            text = text_so_far(speaker.tokenizer, ids, response)
            seconds += time.perf_counter() - begin
            yield Answer(opened + text, len(response), ended, seconds)
            begin = time.perf_counter()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        full = True
    if full:  # after the handler: the exception holds a reference to the memory
        free_memory()
        fix = "begin anew with /clear, or lower max_tokens with /set"
        raise ConfigError("out of memory", where=speaker.name, fix=fix)
    before = speaker.tokenizer.decode(list(ids), skip_special_tokens=True)
    whole = continuation(speaker.tokenizer, ids, before, response)
    yield Answer(opened + whole, len(response), ended, seconds + time.perf_counter() - begin)


def limited(sampling: Sampling, fitted: Fitted) -> Sampling:
    """Return the settings with the room that the prompt leaves."""
    return replace(sampling, max_new_tokens=fitted.room)
