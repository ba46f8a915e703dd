"""Models of one number: rewards of whole responses, values of the states before each token.

They are transformers' sequence classifiers with one label, a language model's body with a head of one row. So they are
a `Scorer` too, and every layout, the gate and the memory plan work for them as they do for language models.
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
from preftune.model.logprobs import Scorer, hidden_states
from preftune.model.weights import note, read_model, require_complete
from preftune.types import Batch, Logps, TokenGroup


@dataclass(frozen=True, slots=True)
class Scale:
    """Mean and standard deviation of a reward model's rewards on the data that it was trained on."""

    mean: float = 0.0
    std: float = 1.0


def load_scalar(source: Source, dtype: torch.dtype, new_head: bool = False) -> Any:
    """A sequence classifier with one label.

    `new_head`: a head that the folder does not have begins at 0, so that all rewards are 0. Raises ModelError for a
    folder without a head otherwise, for one with several labels, and if another tensor is missing.
    """
    import transformers

    if source.adapter:
        raise adapter_unsupported(source.adapter)
    auto = transformers.AutoModelForSequenceClassification
    base = source.base
    model, unread = read_model(auto, "model with a scalar head", base, source.revision, dtype, num_labels=1)
    head = output_layer(model)
    own = {name for name, p in model.named_parameters() if any(p is q for q in head.parameters())}
    labels = [stored[0] for name, (stored, _) in unread.reshaped.items() if name in own]
    if labels:
        raise ModelError(
            f"it has {labels[0]} labels; a reward model has one",
            where=base,
            why="A reward is one number for a response.",
            fix="train a reward model with preftune reward, from a language model",
        )
    lacking = sorted(own & set(unread.missing))
    if lacking and not new_head:
        raise ModelError(
            f"the reward model has no head: {lacking[0]} is not in its weights",
            where=base,
            why="Every reward would be the same.",
            fix="train it with preftune reward, or save it with its head",
        )
    if lacking:
        for parameter in head.parameters():
            torch.nn.init.zeros_(parameter)
        # the head that the new one replaces lies outside the body
        body = f"{model.base_model_prefix}."
        own |= {name for name in unread.unused if not name.startswith(body)}
    elif not new_head and not any(parameter.any() for parameter in head.parameters()):
        note(f"note: {base}: the head of the reward model is 0, so every reward is the same")
    require_complete(model, unread.without(own), base)
    _let_batches_through(model)
    return model.eval()


def adapter_unsupported(folder: str) -> ModelError:
    """The error for an adapter where a model with a scalar head is asked for."""
    return ModelError(
        "an adapter folder cannot be opened with a scalar head",
        where=folder,
        fix="merge it first: load it with peft and save merge_and_unload()",
    )


def scalar_twin(model: Any) -> Any:
    """A classifier with one label on a copy of a language model's body, its adapter left out; its head is 0."""
    import transformers

    base = base_of(model)
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    twin = transformers.AutoModelForSequenceClassification.from_config(config, dtype=base.dtype)
    body = {
        name.replace(".base_layer", ""): weight
        for name, weight in base.base_model.state_dict().items()
        if ".lora_" not in name
    }
    twin.base_model.load_state_dict(body)
    _let_batches_through(twin)
    torch.nn.init.zeros_(output_layer(twin).weight)  # type: ignore[arg-type]
    return twin.to(base.device).eval()


def _let_batches_through(model: Any) -> None:
    """Without a padding token transformers refuses batches, though only its own reading needs one."""
    text = model.config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = model.config.pad_token_id = 0


def scalar_scorer(model: Any) -> Scorer:
    """The scorer of a model with a scalar head."""
    layer = output_layer(model)
    return Scorer(model, Head(layer.weight, getattr(layer, "bias", None)))  # type: ignore[arg-type]


def scalars(scorer: Scorer, batch: Batch) -> Tensor:
    """(N,) fp32: the head's number at every slot from which a token is predicted, that is, before the token."""
    assert scorer.head is not None
    return scorer.head.logits(hidden_states(scorer.model, batch)).squeeze(-1)


def reward_logps(scorer: Scorer, batch: Batch, _wanted: object = ()) -> Logps:
    """The reward of each response of `readable` groups, in the place where a language model has its log-probs."""
    assert scorer.head is not None
    last_S = batch.length_S.cumsum(0) - 1
    hidden = hidden_states(scorer.model, replace(batch, read_N=batch.read_N[last_S]))
    reward_S = scorer.head.logits(hidden).squeeze(-1)
    return Logps(reward_S, reward_S, torch.ones_like(batch.length_S))


def with_reward_slot(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """The groups with one more token after each response: its last one then has a slot, where the reward is read."""

    def longer(ids: Any) -> Any:
        return np.append(ids, 0).astype(np.int32)

    return [replace(group, response_ids=tuple(longer(ids) for ids in group.response_ids)) for group in groups]


def require_padding(model: Any, tokenizer: Any) -> None:
    """Name a padding token that is not EOS: a classifier reads its number at the last token that is not padding."""
    eos = tokenizer.eos_token_id
    named = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    found = next((i for i in named if i is not None and i != eos), None)
    if found is None:
        raise ModelError(
            "the tokenizer has no padding token besides EOS",
            where=str(tokenizer.name_or_path),
            why="transformers would read the reward before the end of a response",
            fix='add a "pad_token" to its tokenizer_config.json',
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(found)
    tokenizer.padding_side = "right"
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = found


def scale_of(model: Any) -> Scale:
    """What `preftune reward` noted in the model's config; a model without is left as it is."""
    noted = getattr(model.config, "reward_scale", None) or {}
    return Scale(float(noted.get("mean", 0.0)), float(noted.get("std", 1.0)))
