"""Generate one response token by token. The key-value cache is kept, and the next prompt reuses its common prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from preftune.model.generate import Sampling, continuation, draw, random_numbers

CHUNK = 256  # prompt tokens per forward pass; between two of them, a response can be stopped
CONTEXT = 8  # prompt tokens that are decoded together with the response, which may need them for its first space


@dataclass(slots=True)
class Stream:
    """A model with the cache of the tokens that it has read last.

    ends     ids of the tokens that end a response
    cached   the tokens whose keys and values are in `cache`
    """

    model: Any
    ends: frozenset[int]
    cache: Any = None
    cached: list[int] = field(default_factory=list)

    def respond(
        self, prompt: Sequence[int], sampling: Sampling, k: int = 0, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[int]:
        """Yield the tokens of sample `k` of the prompt, as `generate.sample` draws them, up to and including its end.

        Stops early if `stopped` returns True before a token.
        """
        numbers = random_numbers(sampling, prompt, k)
        unread = self._reuse(prompt)
        for position in range(sampling.max_new_tokens):
            logits = self._read(unread, stopped)
            if logits is None:
                return
            if sampling.temperature == 0:
                token = int(logits.argmax())
            else:
                number = torch.tensor([[numbers[position]]], dtype=torch.float64, device=logits.device)
                token = int(draw(logits, number, sampling))
            yield token
            if token in self.ends:
                return
            unread = [token]

    def forget(self) -> None:
        """Free the cache."""
        self.cache, self.cached = None, []

    def _reuse(self, prompt: Sequence[int]) -> list[int]:
        """Keep the part of the cache that the prompt begins with, and return the tokens that remain to be read."""
        same = 0  # the last token is always read again, because its logits are not in the cache
        while same < min(len(self.cached), len(prompt) - 1) and self.cached[same] == prompt[same]:
            same += 1
        surplus = len(self.cached) - same
        if self.cache is not None and same and _can_crop(self.cache, surplus):
            if surplus:
                self.cache.crop(-surplus)
            self.cached = self.cached[:same]
        else:
            self.cache, self.cached = _empty_cache(self.model), []
        return list(prompt[len(self.cached) :])

    @torch.no_grad()
    def _read(self, ids: Sequence[int], stopped: Callable[[], bool]) -> Tensor | None:
        """Read tokens, and return the logits (1, V) after the last of them; None if `stopped` before that."""
        size = CHUNK if _can_continue(self.cache) else len(ids)
        device = next(iter(self.model.parameters())).device
        logits = None
        for begin in range(0, len(ids), size):
            if stopped():
                return None
            part = list(ids[begin : begin + size])
            try:
                out = self.model(
                    input_ids=torch.tensor([part], device=device),
                    past_key_values=self.cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            except BaseException:
                self.forget()  # some layers may have stored the tokens, and others not
                raise
            self.cached += part
            logits = out.logits[:, -1].float()
        return logits


def text_so_far(tokenizer: Any, prompt: Sequence[int], response: Sequence[int]) -> str:
    """Return the text of an unfinished response, without an incomplete character at its end."""
    context = list(prompt[-CONTEXT:])
    before = tokenizer.decode(context, skip_special_tokens=True)
    return continuation(tokenizer, context, before, response).rstrip("\N{REPLACEMENT CHARACTER}")


def _empty_cache(model: Any) -> Any:
    """Return an empty cache that does not copy itself for every token."""
    from transformers import DynamicCache

    from preftune.model.growing_cache import to_growing

    return to_growing(DynamicCache(config=model.config.get_text_config()))


def _can_continue(cache: Any) -> bool:
    """Return whether several tokens can be read after others. Recurrent layers read one token, or a whole sequence."""
    from transformers.cache_utils import DynamicSlidingWindowLayer

    from preftune.model.growing_cache import GrowingLayer

    return all(type(layer) in (GrowingLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def _can_crop(cache: Any, tokens: int) -> bool:
    """Return whether `tokens` can be removed. A full sliding window no longer has the tokens that came before."""
    if not _can_continue(cache):
        return False
    windows = [layer for layer in cache.layers if layer.is_sliding]
    return tokens == 0 or all(layer.get_seq_length() < layer.sliding_window for layer in windows)
