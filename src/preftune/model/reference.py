"""The reference: the policy's state at step 0, or another model, as log-probs of a batch's responses.

    Frozen      a second copy of the weights
    AdapterOff  the policy itself, its LoRA adapter switched off
    Cached      log-probs computed once and kept on disk (model.store); no second model in memory

A run without reference (reference-free losses, `reference.kind: none`) has none of these.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from preftune.model.logprobs import Scorer, head_input, logps, sum_responses
from preftune.model.memory import in_parts
from preftune.model.statistics import HeadInput
from preftune.model.store import Store, response_key
from preftune.types import Batch, Logps, TokenGroup, to_device

Layout = Callable[[Sequence[TokenGroup]], list[Batch]]
BLOCK = 2048  # groups that are laid out at a time


class Reference(Protocol):
    """What every loss that uses a reference needs of it."""

    def logps(self, batch: Batch) -> Logps:
        """Log-probs of the batch's responses, without gradient."""
        ...


@runtime_checkable
class Live(Reference, Protocol):
    """A reference that can be run, for losses that compare whole distributions and for new responses."""

    @property
    def scorer(self) -> Scorer: ...

    def states(self, batch: Batch) -> HeadInput:
        """What its head reads at the scored positions, and the head."""
        ...


@dataclass(frozen=True, slots=True)
class Frozen:
    """A model that is never trained."""

    scorer: Scorer

    @staticmethod
    def copy_of(policy: Any) -> Frozen:
        """The weights as they are now, whatever file they once came from."""
        model = copy.deepcopy(policy).requires_grad_(False).eval()
        return Frozen(Scorer.of(model))

    @torch.no_grad()
    def logps(self, batch: Batch) -> Logps:
        return logps(self.scorer, batch)

    @torch.no_grad()
    def states(self, batch: Batch) -> HeadInput:
        return head_input(self.scorer, batch)


@dataclass(frozen=True, slots=True)
class AdapterOff:
    """The policy without its adapter. The adapter layers are found once: asking PEFT walks the model every time."""

    scorer: Scorer
    layers: tuple[Any, ...]

    @staticmethod
    def of(policy: Scorer) -> AdapterOff:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return AdapterOff(policy, tuple(m for m in policy.model.modules() if isinstance(m, BaseTunerLayer)))

    @contextmanager
    def off(self) -> Iterator[None]:
        for layer in self.layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self.layers:
                layer._disable_adapters = False

    @torch.no_grad()
    def logps(self, batch: Batch) -> Logps:
        with self.off():
            return logps(self.scorer, batch)

    @torch.no_grad()
    def states(self, batch: Batch) -> HeadInput:
        with self.off():
            return head_input(self.scorer, batch)


@dataclass(slots=True)
class Cached:
    """Log-probs from a store that has been filled for every group of the run."""

    store: Store
    device: torch.device

    def logps(self, batch: Batch) -> Logps:
        token_N = to_device(
            torch.from_numpy(np.concatenate([self.store.get(key) for key in batch_keys(batch)])), self.device
        )
        length_S = batch.length_S.to(self.device)
        return Logps(token_N, sum_responses(token_N, length_S), length_S)


def batch_keys(batch: Batch) -> list[bytes]:
    """The store's keys of the batch's responses, in order."""
    return [response_key(g.prompt_ids, r) for g in batch.groups for r in g.response_ids]


def store_key(weights: str, dtype: torch.dtype, layout: str) -> str:
    """Folder name of a model's store. The version changes when the arithmetic of scoring does."""
    return hashlib.sha256(f"2 {weights} {dtype} {layout}".encode()).hexdigest()[:32]


@torch.no_grad()
def fill(
    store: Store,
    scorer: Scorer,
    groups: Sequence[TokenGroup],
    layout: Layout,
    adapter: AdapterOff | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Score the groups that the store lacks, the longest first; returns how many. What is done when stopped stays."""
    lacking = [g for g in groups if any(response_key(g.prompt_ids, r) not in store for r in g.response_ids)]
    lacking.sort(key=lambda group: -group.tokens)
    done = 0
    try:
        with adapter.off() if adapter else nullcontext():
            for block in (lacking[begin : begin + BLOCK] for begin in range(0, len(lacking), BLOCK)):
                for part, values in _scored(scorer, block, layout):
                    tokens = values.token_N.cpu().numpy()
                    ends = np.cumsum(values.length_S.cpu().numpy())
                    for key, begin, end in zip(batch_keys(part), [0, *ends[:-1]], ends, strict=True):
                        if key not in store:
                            store.put(key, tokens[begin:end])
                    done += len(part.groups)
                    progress(done, len(lacking))
    finally:
        store.flush()
    return len(lacking)


def _scored(scorer: Scorer, groups: Sequence[TokenGroup], layout: Layout) -> Iterator[tuple[Batch, Logps]]:
    for batch in layout(groups):
        yield from in_parts(lambda some: logps(scorer, some.to(scorer.device)), batch, layout)
