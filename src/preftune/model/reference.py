"""The reference model, which provides log-probs of responses: the policy at step 0, or a different model.

    Frozen      a second copy of the weights
    AdapterOff  the policy with its LoRA adapter disabled
    Cached      log-probs that are computed once and stored on disk (model.reference_cache); no second model in memory

Runs without a reference (reference-free losses, `reference.kind: none`) use none of these classes.
"""

from __future__ import annotations

import copy
import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from preftune.model.kept_adapter import KEPT, NEW, has_kept
from preftune.model.logprobs import Scorer, head_input, logps, sum_responses
from preftune.model.memory import compute_in_parts
from preftune.model.reference_cache import Store, response_keys
from preftune.model.vocabulary_statistics import HeadInput
from preftune.types import Batch, Logps, TokenGroup, to_device

MakeBatches = Callable[[Sequence[TokenGroup]], list[Batch]]
BLOCK = 2048  # number of groups that `fill` passes to the layout at a time


class Reference(Protocol):
    """A source of reference log-probs, for losses that need a reference."""

    def logps(self, batch: Batch) -> Logps:
        """Return the log-probs of the batch's responses, without gradient."""


@runtime_checkable
class Live(Reference, Protocol):
    """A reference with a model in memory, for losses on token distributions and for scoring new responses."""

    @property
    def scorer(self) -> Scorer: ...

    def states(self, batch: Batch) -> HeadInput:
        """Return the hidden states at the scored positions, and the head."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A model that is never trained."""

    scorer: Scorer

    @staticmethod
    def copy_of(policy: Any) -> Frozen:
        """Copy the current weights of the policy."""
        return Frozen(Scorer.of(copy.deepcopy(policy).requires_grad_(False).eval()))

    @torch.no_grad()
    def logps(self, batch: Batch) -> Logps:
        return logps(self.scorer, batch)

    @torch.no_grad()
    def states(self, batch: Batch) -> HeadInput:
        return head_input(self.scorer, batch)


@dataclass(frozen=True, slots=True)
class AdapterOff:
    """The policy without its adapter. Stores the adapter layers, because PEFT would search the model on every call.

    An adapter that is kept below the trained one (lora.adapter=keep) stays active, as a part of the policy at step 0.
    """

    scorer: Scorer
    layers: tuple[Any, ...]
    keeps: bool = False

    @staticmethod
    def of(policy: Scorer) -> AdapterOff:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)  # the second: modules_to_save
        layers = tuple(module for module in policy.model.modules() if isinstance(module, kinds))
        return AdapterOff(policy, layers, has_kept(policy.model))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Disable the adapter inside the block."""
        self._switch(False)
        try:
            yield
        finally:
            self._switch(True)

    def _switch(self, on: bool) -> None:
        for layer in self.layers:
            if self.keeps:
                layer._active_adapter = [KEPT, NEW] if on else [KEPT]
            else:
                layer._disable_adapters = not on

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
    """Log-probs from a store that `fill` has completed for all groups of the run."""

    store: Store
    device: torch.device

    def logps(self, batch: Batch) -> Logps:
        token_logps = np.concatenate([self.store.get(key) for key in batch_keys(batch)])
        token_N = to_device(torch.from_numpy(token_logps), self.device)
        length_S = batch.length_S.to(self.device)
        return Logps(token_N, sum_responses(token_N, length_S), length_S)


def batch_keys(batch: Batch) -> list[bytes]:
    """Return the store's keys of the batch's responses, in order."""
    return [key for group in batch.groups for key in response_keys(group)]


def store_key(weights: str, dtype: torch.dtype, layout: str) -> str:
    """Return the folder name of a model's store. The version changes when the arithmetic of scoring changes."""
    version = 2 if dtype == torch.float32 else 3  # 3: the logits of 16-bit models are fp32 on every device
    return hashlib.sha256(f"{version} {weights} {dtype} {layout}".encode()).hexdigest()[:32]


@torch.no_grad()
def fill(
    store: Store,
    scorer: Scorer,
    groups: Sequence[TokenGroup],
    make_batches: MakeBatches,
    adapter: AdapterOff | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Score the groups that the store lacks, longest first, and return their number. An interruption saves results."""
    missing = _missing(store, groups)
    done = 0
    try:
        with adapter.off() if adapter else nullcontext():
            for block in _blocks(groups, missing):
                for part, values in _scored(scorer, block, make_batches):
                    tokens = values.token_N.cpu().numpy()
                    ends = np.cumsum(values.length_S.cpu().numpy())
                    for key, begin, end in zip(batch_keys(part), [0, *ends[:-1]], ends, strict=True):
                        if key not in store:
                            store.put(key, tokens[begin:end])
                    done += len(part.groups)
                    progress(done, len(missing))
    finally:
        store.flush()
    return len(missing)


def passes(store: Store, groups: Sequence[TokenGroup], make_batches: MakeBatches) -> int:
    """Return the number of micro-batches that `fill` would score."""
    return sum(len(make_batches(block)) for block in _blocks(groups, _missing(store, groups)))


def _blocks(groups: Sequence[TokenGroup], indices: np.ndarray) -> Iterator[list[TokenGroup]]:
    """Yield the groups with these indices, BLOCK at a time."""
    for begin in range(0, len(indices), BLOCK):
        yield [groups[int(index)] for index in indices[begin : begin + BLOCK]]


def _missing(store: Store, groups: Sequence[TokenGroup]) -> np.ndarray:
    """Return the indices of the groups that the store lacks, longest first."""
    indices, tokens = array("i"), array("q")
    for index, group in enumerate(groups):
        if any(key not in store for key in response_keys(group)):
            indices.append(index)
            tokens.append(group.tokens)
    return np.array(indices)[np.argsort(-np.array(tokens, dtype=np.int64), kind="stable")]


def _scored(scorer: Scorer, groups: Sequence[TokenGroup], make_batches: MakeBatches) -> Iterator[tuple[Batch, Logps]]:
    for batch in make_batches(groups):
        yield from compute_in_parts(lambda part: logps(scorer, part.to(scorer.device)), batch, make_batches)
