"""Count the parameters and measure the activations of a model from its config.json alone, without its weights.

The model is built on torch's meta device, where tensors have shapes but no memory. One forward pass there records the
sizes of the tensors that autograd saves. Attention is replaced by a function that saves what a fused kernel saves:
queries, keys, values, the output and one number per head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from preftune.config.schema import LoraConfig, TunedConfig
from preftune.errors import ModelError
from preftune.model.compile import blocks
from preftune.model.head import output_layer
from preftune.model.locate import ADAPTER_CONFIG, read_config
from preftune.model.targets import ALL_LINEAR, expand_targets, linear_layers, require_modules
from preftune.model.weights import load_error

PROBE_TOKENS = 64
ATTENTION = "preftune_plan"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model, in numbers of parameters unless said otherwise.

    root, block      outside of the transformer blocks; in the largest block
    linear, rows     weights and output rows of the linear layers in blocks, which model.quant stores in 4 or 8 bits
    trained, trained_root, trained_block   what is trained, in total, in the root and in one block
    head             the output layer; `head_trained` says whether it is trained
    per_slot         bytes of activations per token slot, in the compute precision
    attention        products per token slot and token that it sees, of all layers: 2 * heads * head size * layers
    """

    name: str
    parameters: int
    root: int
    block: int
    layers: int
    linear: int
    rows: int
    trained: int
    trained_root: int
    trained_block: int
    head: int
    head_trained: bool
    vocabulary: int
    width: int
    per_slot: int
    attention: int


def read_shape(config: TunedConfig, scalar: bool = False) -> ModelShape:
    """Return the sizes of the model of a config. Raises ModelError if its config.json cannot be read or built."""
    model = _meta_model(config.model.path, 4 if config.model.dtype == "fp32" else 2, scalar)
    every, head = blocks(model), output_layer(model)
    sizes = [sum(p.numel() for p in block.parameters()) for block in every]
    total = sum(p.numel() for p in model.parameters())
    linear = [m for block in every for m in block.modules() if type(m) is nn.Linear]
    trained, trained_root = (total, total - sum(sizes)) if config.lora is None else _trained(model, config.lora)
    text = model.config.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(
        name=Path(config.model.path).name,
        parameters=total,
        root=total - sum(sizes),
        block=max(sizes),
        layers=len(every),
        linear=sum(m.in_features * m.out_features for m in linear),
        rows=sum(m.out_features for m in linear),
        trained=trained,
        trained_root=trained_root,
        trained_block=-(-(trained - trained_root) // len(every)),
        head=sum(p.numel() for p in head.parameters()),
        head_trained=not config.lora or _is_saved(model, head, config.lora),
        vocabulary=next(head.parameters()).shape[0],
        width=text.hidden_size,
        per_slot=_activation_bytes(model) // PROBE_TOKENS,
        attention=2 * text.num_attention_heads * head_size * len(every),
    )


@lru_cache(maxsize=2)
def _meta_model(path: str, size: int, scalar: bool) -> Any:
    """Return the model of a folder or Hub id on the meta device, in bf16 (size 2) or fp32 (size 4)."""
    import transformers

    folder = Path(path).expanduser()
    if (folder / ADAPTER_CONFIG).is_file():
        return _meta_model(str(read_config(folder)["base_model_name_or_path"]), size, scalar)
    name, _, revision = path.partition("@")
    try:
        where = {} if folder.is_dir() else {"revision": revision or None}
        config = transformers.AutoConfig.from_pretrained(
            str(folder) if folder.is_dir() else name, trust_remote_code=False, **where
        )
        kind = transformers.AutoModelForSequenceClassification if scalar else transformers.AutoModelForCausalLM
        if scalar:
            config.num_labels = 1
        with torch.device("meta"):
            return kind.from_config(config, dtype=torch.float32 if size == 4 else torch.bfloat16).eval()
    except Exception as error:
        raise load_error("model's config", path, error) from error


def _trained(model: Any, lora: LoraConfig) -> tuple[int, int]:
    """Return the numbers of parameters that a LoRA run trains: in total, and outside of the blocks."""
    require_modules(model, lora.modules_to_save)
    targets = expand_targets(model, lora.targets)
    inside = {id(module) for block in blocks(model) for module in block.modules()}
    total = root = 0
    every = linear_layers(model, ALL_LINEAR) if targets == ALL_LINEAR else _matched(model, targets)
    for module in every.values():
        rows, columns = module.weight.shape  # type: ignore[misc]
        count = lora.rank * (int(rows) + int(columns)) + (int(rows) if lora.dora else 0)
        total, root = total + count, root + count * (id(module) not in inside)
    for name, module in model.named_modules():
        if _ends_with(name, lora.modules_to_save):
            count = sum(p.numel() for p in module.parameters())
            total, root = total + count, root + count * (id(module) not in inside)
    return total, root


def _matched(model: Any, targets: str | list[str]) -> dict[str, nn.Module]:
    """Return the modules with a weight matrix that peft matches."""
    matrices = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.dim() == 2
    }
    if isinstance(targets, str):
        return {name: module for name, module in matrices.items() if re.fullmatch(targets, name)}
    return {name: module for name, module in matrices.items() if _ends_with(name, targets)}


def _ends_with(name: str, endings: list[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _is_saved(model: Any, head: nn.Module, lora: LoraConfig) -> bool:
    name = next(name for name, module in model.named_modules() if module is head)
    return _ends_with(name, lora.modules_to_save)


class _FusedAttention(torch.autograd.Function):
    """Saves what a fused attention kernel saves for its backward pass. Its values do not exist on the meta device."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        per_row = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, per_row)
        return out


def _attend(
    _module: Any, query: Tensor, key: Tensor, value: Tensor, *_args: Any, **_kwargs: Any
) -> tuple[Tensor, None]:
    return _FusedAttention.apply(query, key, value), None  # type: ignore[no-untyped-call]


@lru_cache(maxsize=2)
def _activation_bytes(model: Any) -> int:
    """Return the bytes that a forward pass of PROBE_TOKENS tokens saves, without weights and output layer."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, lambda *_args, **_kwargs: None)
    model.set_attn_implementation(ATTENTION)
    weights = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, Tensor] = {}

    def record(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            saved[key] = tensor  # kept, so that no other storage gets this address
        return tensor

    ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device="meta")
    positions = torch.arange(PROBE_TOKENS, device="meta")[None]
    try:
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor), _without_head(model):
            model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids).bool(), use_cache=False)
    except Exception as error:
        what = f"the activations of {type(model).__name__} cannot be measured without its weights: {error}"
        raise ModelError(
            what, where="--ranks", fix="use --dry-run without --ranks, which measures on the model"
        ) from error
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@contextmanager
def _without_head(model: Any) -> Iterator[None]:
    """Give the output layer no tokens inside the block: its logits are computed in chunks."""

    def cut(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][..., :0, :], *args[1:])

    handle = output_layer(model).register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()
