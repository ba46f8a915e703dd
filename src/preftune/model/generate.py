"""Sampling responses from a model, in batches, with a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from preftune.types import TokenGroup


@dataclass(frozen=True, slots=True)
class Sampled:
    """The responses to one prompt: token ids with their EOS where the model wrote one, and their text without it."""

    group: TokenGroup
    texts: tuple[str, ...]
    ended: tuple[bool, ...]


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    n: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    rows: int = 512,
) -> list[Sampled]:
    """n samples for each prompt (token ids), `rows` sequences at a time. The same arguments give the same samples."""
    device = next(iter(model.parameters())).device
    eos = tokenizer.eos_token_id
    result: list[Sampled] = []
    per_call = max(1, rows // n)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for begin in range(0, len(prompts), per_call):
            chunk = prompts[begin : begin + per_call]
            width = max(map(len, chunk))
            ids = torch.full((len(chunk), width), eos)
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(chunk):  # on the left, so that every row ends where its response begins
                ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
                mask[row, width - len(prompt) :] = 1
            out = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=n,
                max_new_tokens=max_new_tokens,
                eos_token_id=eos,
                pad_token_id=eos,
                use_cache=True,
            )
            written = out[:, width:].cpu().numpy().astype(np.int32)
            result += [_sampled(tokenizer, prompt, written[i * n : (i + 1) * n], eos) for i, prompt in enumerate(chunk)]
    return result


def _sampled(tokenizer: Any, prompt: Sequence[int], written: Any, eos: int) -> Sampled:
    responses, ended = [], []
    for ids in written:
        ends = np.flatnonzero(ids == eos)
        ended.append(len(ends) > 0)
        responses.append(ids[: ends[0] + 1] if len(ends) else ids)
    texts = tuple(tokenizer.decode(r.tolist(), skip_special_tokens=True) for r in responses)
    group = TokenGroup(np.asarray(prompt, dtype=np.int32), tuple(responses))
    return Sampled(group, texts, tuple(ended))
