"""Samples from a model, in batches with a key-value cache.

Every sample has random numbers of its own, made from the seed, its prompt and its place among the n samples of that
prompt. So it does not depend on which other prompts are sampled, in which order, or how many at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preftune.model.compile import uncompiled
from preftune.model.load import id_list, special_ids
from preftune.model.memory import free_memory, out_of_memory
from preftune.types import TokenGroup


@dataclass(frozen=True, slots=True)
class Sampled:
    """The responses to one prompt: token ids with their EOS where the model wrote one, and their text without it."""

    group: TokenGroup
    texts: tuple[str, ...]
    ended: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn. Temperature 0 takes the most likely token; top_k 0 and top_p 1 cut nothing off."""

    n: int = 1
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    rows: int = 512,
    only: Sequence[Sequence[int]] | None = None,
) -> list[Sampled]:
    """`sampling.n` responses for each prompt (token ids), at most `rows` at a time; fewer where memory runs out.

    `only` names, for each prompt, which of its n responses are wanted.
    """
    places = only or [range(sampling.n)] * len(prompts)
    jobs = [(tuple(map(int, prompt)), k) for prompt, own in zip(prompts, places, strict=True) for k in own]
    order = sorted(range(len(jobs)), key=lambda i: len(jobs[i][0]))  # similar lengths together: less padding
    written: dict[int, np.ndarray] = {}
    at = 0
    while at < len(order):
        chunk = order[at : at + rows]
        found = _try(model, tokenizer, [jobs[i] for i in chunk], sampling)
        if found is None:
            if len(chunk) == 1:
                raise MemoryError(f"out of memory while one response to {len(jobs[chunk[0]][0])} tokens was sampled")
            rows = len(chunk) // 2
            continue
        written.update(zip(chunk, found, strict=True))
        at += len(chunk)
    result, at, ends = [], 0, end_ids(model, tokenizer)
    for prompt, own in zip(prompts, places, strict=True):
        result.append(_sampled(tokenizer, prompt, [written[at + i] for i in range(len(own))], ends))
        at += len(own)
    return result


def _try(model: Any, tokenizer: Any, jobs: Sequence[tuple[tuple[int, ...], int]], sampling: Sampling) -> Any:
    """What the model writes for each (prompt, k); None if that does not fit in memory."""
    try:
        return _generate(model, tokenizer, jobs, sampling)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    free_memory()
    return None


@torch.no_grad()
def _generate(model: Any, tokenizer: Any, jobs: Sequence[tuple[tuple[int, ...], int]], sampling: Sampling) -> Any:
    from transformers import LogitsProcessorList

    device = next(iter(model.parameters())).device
    eos, ends = tokenizer.eos_token_id, end_ids(model, tokenizer)
    width = max(len(prompt) for prompt, _ in jobs)
    ids = torch.full((len(jobs), width), eos)
    mask = torch.zeros_like(ids)
    for row, (prompt, _) in enumerate(jobs):  # on the left, so that every row ends where its response begins
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    numbers = np.stack([_numbers(sampling, prompt, k) for prompt, k in jobs])
    drawn = _Drawn(sampling, torch.from_numpy(numbers).to(device), width)
    with uncompiled(model), _undisturbed(model, eos, ends):  # every token makes another length
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=_prefilled(model, ids, mask, [prompt for prompt, _ in jobs]),
            do_sample=False,  # `drawn` leaves one token
            max_new_tokens=sampling.max_new_tokens,
            logits_processor=LogitsProcessorList([drawn]),
            use_cache=True,
        )
    return out[:, width:].cpu().numpy().astype(np.int32)


def _prefilled(model: Any, ids: Tensor, mask: Tensor, prompts: Sequence[tuple[int, ...]]) -> Any:
    """The cache of all but the last prompt token, each distinct prompt computed once; None where that saves nothing."""
    from transformers import DynamicCache

    distinct = {prompt: row for row, prompt in reversed(list(enumerate(prompts)))}  # its first row
    if len(distinct) == len(prompts) or ids.shape[1] == 1:
        return None
    rows = torch.tensor(sorted(distinct.values()), device=ids.device)
    place = {int(row): number for number, row in enumerate(rows)}
    cache = DynamicCache(config=model.config.get_text_config())
    if not all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
        return None  # a recurrent layer's state cannot be handed out
    positions = (mask[rows].cumsum(-1) - 1).clamp(min=0)
    model(
        input_ids=ids[rows, :-1],
        attention_mask=mask[rows, :-1],
        position_ids=positions[:, :-1],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(torch.tensor([place[distinct[prompt]] for prompt in prompts], device=ids.device))
    return cache


def _numbers(sampling: Sampling, prompt: Sequence[int], k: int) -> Any:
    """Uniform random numbers of one sample, one for each token."""
    name = f"{sampling.seed} {k} {' '.join(map(str, prompt))}".encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).random(sampling.max_new_tokens)


@dataclass(slots=True)
class _Drawn:
    """Draws the next token of every row by its own random number, and leaves no other token a chance."""

    sampling: Sampling
    numbers: Tensor
    width: int

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if self.sampling.temperature == 0:
            return logits
        probability = truncate_distribution(
            torch.softmax(logits.double() / self.sampling.temperature, dim=-1), self.sampling
        )
        total = probability.cumsum(dim=-1)
        number = self.numbers[:, ids.shape[1] - self.width, None] * total[:, -1:]
        token = torch.searchsorted(total, number, right=True)
        # rounding could end behind the last token that has any probability
        last = (probability > 0).double().cumsum(-1).argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter_(-1, torch.minimum(token, last), 0.0)


def truncate_distribution(probability: Tensor, sampling: Sampling) -> Tensor:
    """Top-k, then the smallest set of most likely tokens whose probability reaches top_p; the rest becomes 0."""
    if 0 < sampling.top_k < probability.shape[-1]:
        least = probability.topk(sampling.top_k, dim=-1).values[..., -1:]
        probability = probability.where(probability >= least, 0.0)
    if sampling.top_p < 1:
        ordered, index = probability.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        kept = ordered.where(before < sampling.top_p * ordered.sum(-1, keepdim=True), 0.0)
        probability = torch.zeros_like(probability).scatter(-1, index, kept)
    return probability


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """All tokens that end a response: the tokenizer's EOS and the ends that the model's own settings name."""
    ends = {tokenizer.eos_token_id, *id_list(model.generation_config.eos_token_id)}
    more = set(id_list(getattr(model.config.get_text_config(), "eos_token_id", None))) - ends
    return sorted(ends | (more & special_ids(tokenizer) if more else more))


@contextmanager
def _undisturbed(model: Any, eos: int, ends: list[int]) -> Iterator[None]:
    """Without the model's own generation settings (a temperature, a repetition penalty), which would bend what is
    sampled, and out of training mode, in which gradient checkpointing has transformers drop the cache."""
    from transformers import GenerationConfig

    settings, training = model.generation_config, model.training
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=eos)
    model.eval()
    try:
        yield
    finally:
        model.generation_config = settings
        model.train(training)


def continuation(tokenizer: Any, prompt: Sequence[int], before: str, response: Sequence[int]) -> str:
    """What the response adds to the prompt's text, `before`. Alone, SentencePiece would drop its first space."""
    whole = tokenizer.decode([*prompt, *response], skip_special_tokens=True)
    if whole.startswith(before):
        return str(whole[len(before) :])
    return str(tokenizer.decode(list(response), skip_special_tokens=True))  # a character that the boundary cuts


def _sampled(tokenizer: Any, prompt: Sequence[int], written: Sequence[Any], ending: Sequence[int]) -> Sampled:
    responses, ended = [], []
    for ids in written:
        ends = np.flatnonzero(np.isin(ids, ending))
        ended.append(len(ends) > 0)
        responses.append(ids[: ends[0] + 1] if len(ends) else ids)
    before = tokenizer.decode(list(prompt), skip_special_tokens=True)
    texts = tuple(continuation(tokenizer, prompt, before, r.tolist()) for r in responses)
    group = TokenGroup(np.asarray(prompt, dtype=np.int32), tuple(responses))
    return Sampled(group, texts, tuple(ended))
