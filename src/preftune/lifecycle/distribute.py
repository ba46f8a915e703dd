"""Place the models of a run on several ranks: whole on each, or split among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from preftune.lifecycle.policy import Policy, device_of
from preftune.lifecycle.task import ResponseTask
from preftune.model.attention import base_of
from preftune.model.head import output_layer
from preftune.model.logprobs import Scorer
from preftune.model.memory import passes_need_all_ranks
from preftune.ranks import group
from preftune.ranks.shard import reshard, shard, whole
from preftune.train.optim import Weights


def distributed(task: ResponseTask, policy: Policy) -> ResponseTask:
    """Split the policy among the ranks if it is larger than a device. Return the task with its scorer."""
    if policy.shards == 1:
        return task
    policy.scorer = split(policy.scorer, policy, policy.precise)
    policy.precise = {}
    return replace(task, scorer=policy.scorer)


def split(scorer: Scorer, policy: Policy, precise: Mapping[str, torch.Tensor] | None = None) -> Scorer:
    """Split a model, which is on the CPU, in the same way as the policy. Return its scorer."""
    if policy.shards == 1:
        return scorer
    passes_need_all_ranks()
    shard(scorer.model, policy.dtype, policy.shards, device_of(None), precise or {})
    ids = torch.zeros(1, 1, dtype=torch.int64, device=device_of(None))
    with torch.no_grad():  # the first forward pass prepares the collectives
        scorer.model(input_ids=ids, use_cache=False)
    reshard(scorer.model)
    head = scorer.head
    if head is not None:  # `logprobs.current_head` reads the weight of the layer after a forward pass
        layer: Any = output_layer(scorer.model)
        head = replace(head, weight=layer.weight, bias=getattr(layer, "bias", None))
    return Scorer(scorer.model, head)


def gather_policy(policy: Policy, weights: Weights) -> None:
    """On rank 0, replace a split policy with the whole model on the CPU, with the trained weights of all ranks.

    All ranks must call it. One weight after another passes through the memory of a device.
    """
    model, exact = policy.rebuild() if policy.rebuild and group.first() else (None, {})
    parameters = dict(model.named_parameters()) if model is not None else {}
    is_adapter = hasattr(policy.model, "peft_config")
    for name, master in weights:
        value = whole(master)
        if name in parameters:
            dtype = torch.float32 if is_adapter else policy.dtypes.get(name, policy.save_dtype)
            parameters[name].data = value.to(dtype)
    if model is not None:
        base_of(model).config = policy.model.config  # with the scale of a reward model
        policy.scorer, policy.precise = Scorer(model, None), exact
