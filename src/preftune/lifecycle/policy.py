"""Load the policy of a run: precision, device, adapter, layout, and what is needed to save it exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from preftune.chat.render import Renderer
from preftune.config.sampling import PPOConfig
from preftune.config.schema import ModelConfig, TunedConfig
from preftune.data.layout import Budget
from preftune.data.tokenize_groups import require_vocabulary
from preftune.errors import ConfigError, ModelError
from preftune.lifecycle.compute import choose_compile, choose_dtype
from preftune.lifecycle.data import require_length
from preftune.lifecycle.packing_probe import choose_layout
from preftune.model import load
from preftune.model.adapter import add_lora
from preftune.model.compile import compile_blocks, needs_constant_lengths
from preftune.model.logprobs import Scorer, model_size
from preftune.model.memory import available, keep_freed_memory
from preftune.model.precision import exact_in, exact_state, save_dtype_of
from preftune.model.scalar import load_scalar, scalar_scorer
from preftune.model.weights import note
from preftune.ranks import group
from preftune.ranks.environment import place
from preftune.ranks.shard import choose_shards, require_blocks, require_shardable
from preftune.train.optim import moment_bytes
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
    if in_memory:
        _require_usable(model, config.model)
        model = model.eval()
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
    model = with_adapter(model, config, scalar)
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
    work = flops(model_size(model)[0])
    compiled, compile_note = choose_compile(config.model, model.dtype, device, work, in_memory or shards > 1)
    constant = compiled and needs_constant_lengths(layout, device, model.dtype)
    if compiled:
        compile_blocks(model, constant)
    notes = [note for note in (dtype_note, layout_note, compile_note, ranks_note) if note]
    return Policy(
        scorer,
        renderer.tokenizer,
        renderer,
        save_dtype,
        start_hash,
        Budget(layout, PROVISIONAL, constant),
        precise,
        notes,
        base_unsaved=bool(config.lora) and (in_memory or source.adapter is not None),
        dtypes=dtypes,
        dtype=model.dtype,
        shards=shards,
        rebuild=partial(_read_again, config, source, model.dtype, scalar),
    )


def with_adapter(model: Any, config: TunedConfig, scalar: bool) -> Any:
    """Return the model with a new adapter, if the config has one."""
    if not config.lora:
        return model
    kind, lora = "SEQ_CLS" if scalar else "CAUSAL_LM", config.lora
    return add_lora(model, lora.rank, lora.alpha, lora.targets, kind)


def _read_again(
    config: TunedConfig, source: load.Source, dtype: torch.dtype, scalar: bool
) -> tuple[Any, Mapping[str, torch.Tensor]]:
    """Return the model of step 0, on the CPU, and its exact values; see `read_policy`."""
    model, precise = read_policy(config, source, dtype, scalar, load.source_dtypes(source))
    return with_adapter(model, config, scalar), precise


def choose_ranks(config: TunedConfig, model: Any, device: torch.device) -> tuple[int, str]:
    """Return the number of ranks that share one copy of the weights, and a line to print; 1 for a single process."""
    if group.world() == 1:
        return 1, ""
    sizes = [(p.numel(), p.element_size(), p.requires_grad) for p in model.parameters()]
    trained = sum(count for count, _, is_trained in sizes if is_trained)
    state = (4 if model.dtype == torch.float32 else 8) + moment_bytes(config.optim.name, config.optim.moments)
    needed = sum(count * size for count, size, _ in sizes) + trained * state
    sharing = place().local_world if device.type == "cpu" else 1
    shards, line = choose_shards(needed, available(device) / sharing)
    if shards > 1:
        if isinstance(config, PPOConfig):
            fix = "use a smaller model or lora, or launch with --weights whole"
            raise ConfigError("ppo needs all weights on each rank, but they do not fit", where="ranks", fix=fix)
        require_shardable(config)
        require_blocks(model)
    return shards, line


def read_policy(
    config: TunedConfig, source: load.Source, dtype: torch.dtype, scalar: bool, stored: Mapping[str, torch.dtype]
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the model in compute precision, and fp32 values of tensors that are rounded by it and will be saved."""
    rounded = source.adapter is not None or not exact_in(stored.values() or {load.source_dtype(source)}, dtype)
    saved = not config.lora or source.adapter is not None or scalar  # the base of an adapter is not saved
    needed = rounded and saved and dtype != torch.float32
    precise = exact_state(_read(source, torch.float32, scalar)) if needed else {}
    if torch.float64 in stored.values():
        note(f"note: {source.base}: float64 weights are rounded to fp32, the highest precision that runs use")
    return _read(source, dtype, scalar).requires_grad_(True), precise


def _read(source: load.Source, dtype: torch.dtype, scalar: bool) -> Any:
    return load_scalar(source, dtype, new_head=True) if scalar else load.load_model(source, dtype)


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
