"""Sample responses from a model, in batches with a key-value cache.

The random numbers of each sample depend only on the seed, the prompt and the sample's index among the n samples of the
prompt. So a sample does not depend on the other prompts, their order or the batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preftune.formulas import generator_of
from preftune.model.compile import uncompiled
from preftune.model.load import id_list, special_ids
from preftune.model.memory import can_repeat, free_memory
from preftune.types import TokenGroup


@dataclass(frozen=True, slots=True)
class Sampled:
    """The responses to one prompt: token ids with EOS if the model generated it, and texts without EOS."""

    group: TokenGroup
    texts: tuple[str, ...]
    ended: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings. Temperature 0 is greedy decoding; top_k 0 and top_p 1 do not restrict the tokens."""

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
    """Return `sampling.n` responses for each prompt (token ids).

    rows   most responses per batch; halved when memory runs out
    only   for each prompt, the indices of the samples to draw (default: all n)
    """
    indices = only or [range(sampling.n)] * len(prompts)
    jobs = [(tuple(map(int, prompt)), k) for prompt, samples in zip(prompts, indices, strict=True) for k in samples]
    order = sorted(range(len(jobs)), key=lambda i: len(jobs[i][0]))  # batches of similar lengths need less padding
    outputs: dict[int, np.ndarray] = {}
    start = 0
    while start < len(order):
        chunk = order[start : start + rows]
        chunk_outputs = _try(model, tokenizer, [jobs[i] for i in chunk], sampling)
        if chunk_outputs is None:
            if len(chunk) == 1:
                raise MemoryError(f"out of memory: one response to a prompt of {len(jobs[chunk[0]][0])} tokens")
            rows = len(chunk) // 2
            continue
        outputs.update(zip(chunk, chunk_outputs, strict=True))
        start += len(chunk)
    result, start, ends = [], 0, end_ids(model, tokenizer)
    for prompt, samples in zip(prompts, indices, strict=True):
        result.append(_sampled(tokenizer, prompt, [outputs[start + i] for i in range(len(samples))], ends))
        start += len(samples)
    return result


def _try(model: Any, tokenizer: Any, jobs: Sequence[tuple[tuple[int, ...], int]], sampling: Sampling) -> Any:
    """Generate the output of each job (prompt, sample index). Returns None if memory runs out."""
    try:
        return _generate(model, tokenizer, jobs, sampling)
    except (RuntimeError, MemoryError) as error:
        if not can_repeat(error):
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
    for row, (prompt, _) in enumerate(jobs):  # left padding, so that all responses begin in the same column
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    numbers = np.stack([random_numbers(sampling, prompt, k) for prompt, k in jobs])
    processor = _DrawToken(sampling, torch.from_numpy(numbers).to(device), width)
    with uncompiled(model), _plain_generation(model, eos, ends):  # uncompiled: each token changes the length
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=_prefilled(model, ids, mask, [prompt for prompt, _ in jobs]),
            do_sample=False,  # `processor` draws the token and excludes all others
            max_new_tokens=sampling.max_new_tokens,
            logits_processor=LogitsProcessorList([processor]),
            use_cache=True,
        )
    return out[:, width:].cpu().numpy().astype(np.int32)


def _prefilled(model: Any, ids: Tensor, mask: Tensor, prompts: Sequence[tuple[int, ...]]) -> Any:
    """Return the cache of all prompt tokens but the last, computed once per distinct prompt.

    If all prompts differ, return an empty cache for a GPU, else None: the model then makes its own.
    """
    from transformers import DynamicCache

    from preftune.model.growing_cache import to_growing

    cache = DynamicCache(config=model.config.get_text_config())
    if not all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
        return None  # the states of recurrent layers cannot be copied to other rows
    if _wants_growing_cache(ids.device):
        cache = to_growing(cache)
    distinct = {prompt: row for row, prompt in reversed(list(enumerate(prompts)))}  # the first row of each prompt
    if len(distinct) == len(prompts) or ids.shape[1] == 1:
        return cache if _wants_growing_cache(ids.device) else None
    rows = torch.tensor(sorted(distinct.values()), device=ids.device)
    cache_row = {int(row): number for number, row in enumerate(rows)}
    positions = (mask[rows].cumsum(-1) - 1).clamp(min=0)
    model(
        input_ids=ids[rows, :-1],
        attention_mask=mask[rows, :-1],
        position_ids=positions[:, :-1],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(torch.tensor([cache_row[distinct[prompt]] for prompt in prompts], device=ids.device))
    return cache


def _wants_growing_cache(device: torch.device) -> bool:
    """Return whether sampling should not copy the cache for every token: on a GPU, where the copy takes most time."""
    return device.type == "cuda"


def random_numbers(sampling: Sampling, prompt: Sequence[int], k: int) -> Any:
    """Return the uniform random numbers of sample `k` of a prompt, one per token."""
    return generator_of(f"{sampling.seed} {k} {' '.join(map(str, prompt))}").random(sampling.max_new_tokens)


@dataclass(slots=True)
class _DrawToken:
    """Logits processor that draws the next token of each row and sets the logits of all other tokens to -inf."""

    sampling: Sampling
    numbers: Tensor
    width: int

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if self.sampling.temperature == 0:
            return logits
        token = draw(logits, self.numbers[:, ids.shape[1] - self.width, None], self.sampling)
        return torch.full_like(logits, -torch.inf).scatter_(-1, token, 0.0)


def draw(logits: Tensor, numbers: Tensor, sampling: Sampling) -> Tensor:
    """Return the next token of each row (B, 1), given its logits (B, V) and a uniform random number (B, 1)."""
    probability = torch.softmax(logits.double() / sampling.temperature, dim=-1)
    total = truncate_distribution(probability, sampling).cumsum(dim=-1)
    token = torch.searchsorted(total, numbers * total[:, -1:], right=True)
    # Because of rounding, the number could be the total itself: then take the first token that reaches it.
    last = torch.searchsorted(total, total[:, -1:].contiguous())
    return torch.minimum(token, last)


def truncate_distribution(probability: Tensor, sampling: Sampling) -> Tensor:
    """Apply top-k, then top-p (the smallest set of most likely tokens that reaches top_p); other tokens get 0."""
    if 0 < sampling.top_k < probability.shape[-1]:
        threshold = probability.topk(sampling.top_k, dim=-1).values[..., -1:]
        probability = probability.where(probability >= threshold, 0.0)
    if sampling.top_p < 1:
        ordered, index = probability.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        truncated = ordered.where(before < sampling.top_p * ordered.sum(-1, keepdim=True), 0.0)
        probability = torch.zeros_like(probability).scatter(-1, index, truncated)
    return probability


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return all tokens that end a response: the tokenizer's EOS and those in the model's generation settings."""
    ends = {tokenizer.eos_token_id, *id_list(model.generation_config.eos_token_id)}
    more = set(id_list(getattr(model.config.get_text_config(), "eos_token_id", None))) - ends
    return sorted(ends | (more & special_ids(tokenizer) if more else more))


@contextmanager
def _plain_generation(model: Any, eos: int, ends: list[int]) -> Iterator[None]:
    """Disable the model's generation settings (temperature, repetition penalty), which would change the distribution,
    and training mode, in which gradient checkpointing disables the cache."""
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
    """Return the text that the response adds to the prompt's text, `before`.

    SentencePiece would drop the leading space of a response that is decoded without its prompt.
    """
    whole = tokenizer.decode([*prompt, *response], skip_special_tokens=True)
    if whole.startswith(before):
        return str(whole[len(before) :])
    return str(tokenizer.decode(list(response), skip_special_tokens=True))  # a character spans the boundary


def _sampled(tokenizer: Any, prompt: Sequence[int], outputs: Sequence[Any], ends: Sequence[int]) -> Sampled:
    responses, ended = [], []
    for ids in outputs:
        positions = np.flatnonzero(np.isin(ids, ends))
        ended.append(len(positions) > 0)
        responses.append(ids[: positions[0] + 1] if len(positions) else ids)
    before = tokenizer.decode(list(prompt), skip_special_tokens=True)
    texts = tuple(continuation(tokenizer, prompt, before, r.tolist()) for r in responses)
    group = TokenGroup(np.asarray(prompt, dtype=np.int32), tuple(responses))
    return Sampled(group, texts, tuple(ended))
