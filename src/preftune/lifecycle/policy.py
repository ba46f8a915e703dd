"""Load the policy of a run: precision, device, adapter, layout, and what is needed to save it exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from preftune.chat.render import Renderer
from preftune.config.schema import LoraConfig, ModelConfig, TunedConfig
from preftune.data.layout import Budget
from preftune.data.tokenize_groups import require_vocabulary
from preftune.errors import ConfigError, ModelError
from preftune.lifecycle.compute import choose_compile, choose_dtype
from preftune.lifecycle.data import require_length
from preftune.lifecycle.packing_probe import choose_layout
from preftune.lifecycle.shards import choose_ranks
from preftune.model import load
from preftune.model.adapter import Variant, add_lora
from preftune.model.compile import compile_blocks, needs_constant_lengths
from preftune.model.logprobs import Scorer, model_size
from preftune.model.memory import keep_freed_memory
from preftune.model.precision import exact_in, exact_state, save_dtype_of
from preftune.model.quantised import quantised_weights, require_quant, stored_tensors
from preftune.model.scalar import load_scalar, scalar_scorer
from preftune.model.weights import note
from preftune.types import TokenGroup

PROVISIONAL = 4096  # token slots of a micro-batch until lifecycle.plan chooses the size


@dataclass(slots=True)
class Policy:
    """The model that is trained, with what is needed to save it.

    start_hash     hash of its weights at step 0
    precise        fp32 values, by name, of weights and buffers that the compute precision rounds; with LoRA, only if
                   the base is saved, too
    dtypes         precision of tensors in `final/` by name; all others have `save_dtype`
    notes          lines to print: why this precision, this layout, and compiled blocks
    base_unsaved   the adapter's base exists only in memory, so the run folder must contain it
    dtype          compute precision
    shards         ranks that share one copy of the weights; above 1, the model is on the CPU until it is split
    rebuild        loads the model of step 0 and its exact values again, to save a model whose weights are split
    quant          storage of the base's linear layers (model.quant)
    source         where its base was loaded from; None for a model in memory
    """

    scorer: Scorer
    tokenizer: Any
    renderer: Renderer
    save_dtype: torch.dtype
    start_hash: str
    budget: Budget
    precise: Mapping[str, torch.Tensor]
    notes: Sequence[str] = ()
    base_unsaved: bool = False
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    shards: int = 1
    rebuild: Callable[[], tuple[Any, Mapping[str, torch.Tensor]]] | None = None
    quant: str | None = None
    source: load.Source | None = None

    @property
    def model(self) -> Any:
        return self.scorer.model


def load_policy(
    config: TunedConfig,
    source: load.Source,
    renderer: Renderer,
    model: Any = None,
    scalar: bool = False,
    recorded: str | None = None,
    flops: Callable[[int], float] = lambda parameters: 0.0,
) -> Policy:
    """Return the policy at step 0 on its device, with an adapter if the config has one. Dropout is off.

    model      a model in memory; None loads the model from `source`
    scalar     it is a reward model
    recorded   the precision in the manifest of a run that is resumed
    flops      returns the operations of the run for a number of parameters
    """
    torch.manual_seed(config.train.seed)
    in_memory, device = model is not None, device_of(model)
    dtype_note = ""
    _require_quant(config, source, in_memory)
    source, kept = split_kept(config, source, in_memory, scalar)
    if in_memory:
        _require_usable(model, config.model)
        model, dtype_note = model.eval(), ""
        precise: dict[str, torch.Tensor] = {}
        dtypes, save_dtype = {name: t.dtype for name, t in exact_state(model).items()}, model.dtype
    else:
        dtypes = load.source_dtypes(source)
        width = load.load_config(source).get_text_config().hidden_size
        dtype, dtype_note = choose_dtype(config.model.dtype, width, device, recorded)
        model, precise = read_policy(config, source, dtype, scalar, dtypes)
        dtypes = {name: torch.float32 if dtype == torch.float64 else dtype for name, dtype in dtypes.items()}
        save_dtype = save_dtype_of(model, dtypes) if dtypes else load.source_dtype(source)
    if config.model.save_dtype != "auto":
        dtypes, save_dtype = {}, load.DTYPES[config.model.save_dtype]
    model.config.use_cache = False
    model = with_adapter(model, config, scalar, kept)
    start_hash = load.weights_hash(model)  # before the weights are on a GPU, from where they would be copied back
    shards, ranks_note = choose_ranks(config, model, device)
    if shards == 1:
        model.to(device)
    if device.type == "cpu" and model.dtype != torch.float32:
        keep_freed_memory()
    scorer = scalar_scorer(model) if scalar else Scorer.of(model)
    layout, layout_note = choose_layout(scorer, config.model.attention)
    if config.model.gradient_checkpointing:
        load.checkpoint_activations(model)
    constant, compile_note = _compile(model, config.model, layout, flops(model_size(model)[0]), in_memory or shards > 1)
    reasons = dtype_note, _quant_note(model, config.model.quant), layout_note, compile_note, ranks_note
    return Policy(
        scorer,
        renderer.tokenizer,
        renderer,
        save_dtype,
        start_hash,
        Budget(layout, PROVISIONAL, constant),
        precise,
        [note for note in reasons if note],
        base_unsaved=bool(config.lora) and (in_memory or source.adapter is not None),
        dtypes=dtypes,
        quant=config.model.quant,
        source=None if in_memory else source,
        dtype=model.dtype,
        shards=shards,
        rebuild=partial(_read_again, config, source, model.dtype, scalar, kept),
    )


def _compile(model: Any, config: ModelConfig, layout: str, work: float, is_fixed: bool) -> tuple[bool, str]:
    """Compile the blocks if the config or the length of the run calls for it.

    Return whether micro-batches need constant lengths, and a line to print. `is_fixed`: `auto` does not compile.
    """
    device = next(iter(model.parameters())).device
    compiled, line = choose_compile(config, model.dtype, device, work, is_fixed)
    constant = compiled and needs_constant_lengths(layout, device, model.dtype)
    if compiled:
        compile_blocks(model, constant)
    return constant, line


def with_adapter(model: Any, config: TunedConfig, scalar: bool, kept: str | None) -> Any:
    """Return the model with a new adapter, if the config has one. `kept` is the folder of an adapter below it."""
    if not config.lora:
        return model
    kind, lora = "SEQ_CLS" if scalar else "CAUSAL_LM", config.lora
    return add_lora(model, lora.rank, lora.alpha, lora.targets, kind, variant_of(lora), kept)


def _read_again(
    config: TunedConfig, source: load.Source, dtype: torch.dtype, scalar: bool, kept: str | None
) -> tuple[Any, Mapping[str, torch.Tensor]]:
    """Return the model of step 0, on the CPU, and its exact values; see `read_policy`."""
    model, precise = read_policy(config, source, dtype, scalar, load.source_dtypes(source))
    return with_adapter(model, config, scalar, kept), precise


def variant_of(lora: LoraConfig) -> Variant:
    """Return the settings of the section `lora` for `add_lora`."""
    return Variant(lora.rslora, lora.dora, tuple(lora.modules_to_save), lora.init)


def split_kept(
    config: TunedConfig, source: load.Source, in_memory: bool, scalar: bool
) -> tuple[load.Source, str | None]:
    """Return the source of the model below the new adapter, and the adapter folder to keep (lora.adapter=keep) or None.

    Raises ConfigError if `source` is not an adapter, and for a reward model, which is saved with merged weights.
    """
    if not config.lora or config.lora.adapter != "keep":
        return source, None
    if in_memory or not source.adapter:
        what = f"{config.model.path} is not an adapter folder, so no adapter can be kept"
        raise ConfigError(what, where="lora.adapter", fix="set model.path to an adapter folder, or lora.adapter=merge")
    if scalar:
        what, fix = "a reward model cannot keep the adapter of a language model", "set lora.adapter=merge"
        raise ConfigError(what, where="lora.adapter", fix=fix)
    return replace(source, adapter=None, quant=None), source.adapter


def read_policy(
    config: TunedConfig, source: load.Source, dtype: torch.dtype, scalar: bool, stored: Mapping[str, torch.dtype]
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the model in compute precision, and fp32 values of tensors that are rounded by it and will be saved.

    There are no such values for a quantised model: its base is read again when it is saved.
    """
    if config.model.quant:
        exact = torch.float32 if source.adapter else load.source_dtype(source)
        read = partial(_read, source, scalar=scalar)
        return load.quantise_exactly(read, exact, dtype, config.model.quant), {}
    rounded = source.adapter is not None or not exact_in(stored.values() or {load.source_dtype(source)}, dtype)
    saved = not config.lora or source.adapter is not None or scalar  # the base of an adapter is not saved
    needed = rounded and saved and dtype != torch.float32
    precise = exact_state(_read(source, torch.float32, scalar)) if needed else {}
    if torch.float64 in stored.values():
        note(f"note: {source.base}: float64 weights are rounded to fp32, the highest precision that runs use")
    return _read(source, dtype, scalar).requires_grad_(True), precise


def _read(source: load.Source, dtype: torch.dtype, scalar: bool) -> Any:
    return load_scalar(source, dtype, new_head=True) if scalar else load.load_model(source, dtype)


def _require_quant(config: TunedConfig, source: load.Source, in_memory: bool) -> None:
    """Raise ConfigError for a setting of model.quant that the model does not allow, or if its package is missing."""
    quant, fix = config.model.quant, f"set model.quant={source.quant}"
    kept = config.lora is not None and config.lora.adapter == "keep"
    if in_memory and quant:
        fix = "pass a path as the model"
        raise ConfigError("a model in memory is not quantised, because it would change", where="model.quant", fix=fix)
    if source.quant and kept and quant != source.quant:
        what = f"the adapter to keep was trained on a base model in {source.quant}"
        raise ConfigError(what, where="model.quant", fix=f"{fix}, or lora.adapter=merge")
    if source.quant and not source.adapter:
        what = f"{config.model.path} names a quantisation, which training reads from model.quant"
        raise ConfigError(what, where="model.path", fix=f"{fix} and remove :{source.quant} from model.path")
    require_quant(quant)


def _quant_note(model: Any, quant: str | None) -> str:
    """Return a line with the number of quantised weights and their memory; "" without any."""
    if not quant:
        return ""
    count, stored = quantised_weights(model), sum(t.numel() * t.element_size() for t in stored_tensors(model))
    before = count * model.dtype.itemsize
    return f"quantised: {count:,} weights in {quant}, {stored / 1e6:,.1f} MB instead of {before / 1e6:,.1f} MB"


def _require_usable(model: Any, config: ModelConfig) -> None:
    """Raise ModelError or ConfigError for a model in memory that already has an adapter or a different precision."""
    if hasattr(model, "peft_config"):
        raise ModelError(
            "the model already has an adapter",
            where="model",
            why="the reference would be the model without that adapter",
            fix="pass the model without an adapter or merge it (merge_and_unload); the section `lora` adds a new one",
        )
    if config.dtype != "auto" and load.DTYPES[config.dtype] != model.dtype:
        raise ConfigError(
            f"the config sets {config.dtype}, but the model in memory is in {model.dtype}",
            where="model.dtype",
            fix="set model.dtype=auto, or pass the model in that precision",
        )


def require_same_vocabulary(tokenizer: Any, other: Any, where: str, what: str = "reference") -> None:
    """Raise ModelError unless both tokenizers map the same tokens to the same ids."""
    if tokenizer.get_vocab() != other.get_vocab():
        raise ModelError(
            f"the {what} and the policy have different vocabularies",
            where=where,
            why="the same token ids would be different tokens",
            fix="use the model that the policy was tuned from, or one with the same tokenizer",
        )


def compute_dtype(config: ModelConfig) -> torch.dtype:
    """Return the precision for sampling and scoring: for `auto`, bf16 on a GPU that supports it, else fp32.

    Training runs use lifecycle.compute.choose_dtype.
    """
    if config.dtype != "auto":
        return load.DTYPES[config.dtype]
    native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def device_of(model: Any) -> torch.device:
    """Return the device of a model in memory; for None, a GPU if there is one, else the CPU."""
    if model is not None:
        device: torch.device = next(iter(model.parameters())).device
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def check_policy(policy: Policy, groups: Sequence[TokenGroup], source: load.Source, where: str) -> None:
    """Raise for token ids without an embedding in the model, and for sequences longer than its context."""
    require_vocabulary(groups, policy.model.get_input_embeddings().weight.shape[0], source.base)
    require_positions(policy.model, groups, where)


def require_positions(model: Any, groups: Sequence[TokenGroup], where: str) -> None:
    """Raise ConfigError for sequences longer than the model's context; `where` is the setting to lower."""
    require_length(groups, load.max_positions(model.config), where)
