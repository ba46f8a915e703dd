"""Models with a scalar head: rewards of whole responses, and values of the states before each token.

They are sequence classifiers of transformers with one label: the body of a language model with a head of one row.
`Scorer` also works for them, and with it all batch layouts, the packing probe and the memory estimate.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preftune.errors import ModelError
from preftune.model.attention import base_of
from preftune.model.head import Head, output_layer
from preftune.model.load import Source
from preftune.model.locate import MERGE_FIRST
from preftune.model.logprobs import Scorer, current_head, hidden_states
from preftune.model.quantised import quantised_layers
from preftune.model.weights import note, read_model, require_complete, require_finite
from preftune.types import Batch, Logps, TokenGroup


@dataclass(frozen=True, slots=True)
class Scale:
    """Mean and standard deviation of a reward model's rewards on its training data."""

    mean: float = 0.0
    std: float = 1.0


def load_scalar(source: Source, dtype: torch.dtype, new_head: bool = False) -> Any:
    """Load a sequence classifier with one label.

    With `new_head`, a head that the folder lacks is initialised with 0, so that all rewards are 0. Raises ModelError
    if the folder lacks the head and `new_head` is false, has several labels, or lacks any other tensor.
    """
    import transformers

    if source.adapter:
        raise adapter_unsupported(source.adapter)
    auto = transformers.AutoModelForSequenceClassification
    base = source.base
    model, mismatch = read_model(auto, "model with a scalar head", base, source.revision, dtype, num_labels=1)
    head = output_layer(model)
    own = {name for name, p in model.named_parameters() if any(p is q for q in head.parameters())}
    labels = [stored[0] for name, (stored, _) in mismatch.reshaped.items() if name in own]
    if labels:
        raise ModelError(
            f"the model has {labels[0]} labels, but a reward model has one",
            where=base,
            why="a reward is a single number per response",
            fix="train a reward model from a language model with preftune reward",
        )
    missing = sorted(own & set(mismatch.missing))
    if missing and not new_head:
        raise ModelError(
            f"the reward model has no head: {missing[0]} is not in its weights",
            where=base,
            why="all rewards would be equal",
            fix="train it with preftune reward, or save it with its head",
        )
    if missing:
        for parameter in head.parameters():
            torch.nn.init.zeros_(parameter)
        # The head that the new one replaces is not part of the body.
        body = f"{model.base_model_prefix}."
        own |= {name for name in mismatch.unused if not name.startswith(body)}
    elif not new_head and not any(parameter.any() for parameter in head.parameters()):
        note(f"note: {base}: the head of the reward model is 0, so all rewards are equal")
    require_complete(model, mismatch.without(own), base)
    require_finite(model, base)
    _allow_batches(model)
    return model.eval()


def adapter_unsupported(folder: str) -> ModelError:
    """Return the error for an adapter folder in place of a model with a scalar head."""
    return ModelError("an adapter folder cannot be loaded with a scalar head", where=folder, fix=MERGE_FIRST)


def scalar_twin(model: Any) -> Any:
    """Return a classifier with one label and a zero head on a copy of a language model's body, without its adapter."""
    import transformers

    base = base_of(model)
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    twin = transformers.AutoModelForSequenceClassification.from_config(config, dtype=base.dtype)
    body = {
        name.replace(".base_layer", "").replace(".original_module", ""): weight
        for name, weight in base.base_model.state_dict().items()
        if ".lora_" not in name and ".modules_to_save." not in name
    }
    for name, layer in quantised_layers(base.base_model):
        plain = name.replace(".base_layer", "")
        stored = {f"{plain}.{key}" for key, _ in layer.named_buffers()}
        body = {key: tensor for key, tensor in body.items() if key not in stored}
        body[f"{plain}.weight"] = layer.weight
    twin.base_model.load_state_dict(body)
    _allow_batches(twin)
    torch.nn.init.zeros_(output_layer(twin).weight)  # type: ignore[arg-type]
    return twin.to(base.device).eval()


def _allow_batches(model: Any) -> None:
    """Set a padding token if there is none: without one, transformers rejects batches. preftune does not use it."""
    text = model.config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = model.config.pad_token_id = 0


def scalar_scorer(model: Any) -> Scorer:
    """Return the scorer of a model with a scalar head."""
    layer = output_layer(model)
    return Scorer(model, Head(layer.weight, getattr(layer, "bias", None)))  # type: ignore[arg-type]


def scalars(scorer: Scorer, batch: Batch) -> Tensor:
    """Return the (N,) fp32 outputs of the head at the slots that predict a token, which is before the token."""
    hidden_NH = hidden_states(scorer.model, batch)
    return current_head(scorer).logits(hidden_NH).squeeze(-1)


def reward_logps(scorer: Scorer, batch: Batch, _names: object = ()) -> Logps:
    """Return the reward of each response as a `Logps`. The groups must come from `with_reward_slot`."""
    last_S = batch.length_S.cumsum(0) - 1
    reward_S = scalars(scorer, replace(batch, read_N=batch.read_N[last_S]))
    return Logps(reward_S, reward_S, torch.ones_like(batch.length_S))


def with_reward_slot(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Append a token to each response, so that its last token has a slot in the batch: the reward is read there."""

    def extended(ids: Any) -> Any:
        return np.append(ids, 0).astype(np.int32)

    return [
        replace(
            group,
            response_ids=tuple(extended(ids) for ids in group.response_ids),
            masks=tuple(np.append(mask, True) for mask in group.masks),
        )
        for group in groups
    ]


def require_padding(model: Any, tokenizer: Any) -> None:
    """Set a padding token other than EOS: transformers reads the reward at the last token that is not padding."""
    eos = tokenizer.eos_token_id
    candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    pad = next((i for i in candidates if i is not None and i != eos), None)
    if pad is None:
        raise ModelError(
            "the tokenizer has no padding token other than EOS",
            where=str(tokenizer.name_or_path),
            why="transformers would read the reward one token too early, before EOS",
            fix='add a "pad_token" to its tokenizer_config.json',
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.padding_side = "right"
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad


def scale_of(model: Any) -> Scale:
    """Return the scale that `preftune reward` saved in the model's config; mean 0 and std 1 without one."""
    saved = getattr(model.config, "reward_scale", None) or {}
    return Scale(float(saved.get("mean", 0.0)), float(saved.get("std", 1.0)))
