"""PEFT adapters: create a LoRA adapter for training, or merge a saved adapter into its base model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preftune.errors import ModelError
from preftune.model.kept_adapter import KEPT, stack
from preftune.model.locate import ADAPTER_CONFIG, MERGE_FIRST, WEIGHTS, read_config
from preftune.model.targets import expand_targets, linear_modules, require_modules
from preftune.model.weight_files import shortened
from preftune.model.weights import load_error, note, read_header

OTHER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM", "QUESTION_ANS")
PREFIX = "base_model.model."  # peft adds it to the names of the base model's tensors
# Warnings of peft 0.21 that appear in every run, or about cases that peft or `merge_adapter` handles.
HANDLED_WARNINGS = (
    "fan_in_fan_out is set to",
    "Specified to not save vera_A and vera_B",
    "`is_gradient_checkpointing` is deprecated",
    "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter",
    "Model with `tie_word_embeddings=True` and the tied_target_modules=",
    "Setting `save_embedding_layers` to `True`",
    "Input and output embeddings are no longer tied after merging",
)


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings of a LoRA adapter that few runs change, see config.adapter."""

    rslora: bool = False
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    init: str = "default"


PLAIN = Variant()


def load_and_merge(model: Any, folder: str) -> Any:
    """Load the adapter in `folder` and return `model` with the adapter merged into its weights.

    Raises ModelError if the adapter does not fit the model, is incomplete, or cannot be merged.
    """
    return merge_adapter(load_adapter(model, folder), folder)


def load_adapter(model: Any, folder: str, name: str = "default") -> Any:
    """Return a peft model: `model` with the adapter in `folder`, not merged, under `name` in peft.

    Raises ModelError as `load_and_merge`.
    """
    import peft

    config = read_config(Path(folder))
    _require_mergeable(str(config.get("peft_type")), config.get("task_type"), folder)
    resize_for(model, config, Path(folder))
    _require_rows(model, config, folder)
    try:
        with warnings_noted(folder):
            settings = peft.PeftConfig.from_pretrained(folder)
            settings.inference_mode = True
            kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(settings.task_type, peft.PeftModel)
            # The same steps as PeftModel.from_pretrained, which does not report unexpected tensors.
            names = getattr(model, "_checkpoint_conversion_mapping", {})
            tuned = kind(model, settings, name)
            result = tuned.load_adapter(folder, name, torch_device="cpu", key_mapping=names)
    except Exception as error:
        raise _misfit_error(folder, error) from error
    _require_complete(folder, [*result.missing_keys, *_unreported_missing(tuned, folder, name)], result.unexpected_keys)
    return tuned


def _unreported_missing(tuned: Any, folder: str, adapter: str) -> list[str]:
    """Return the trained biases and index tensors that the adapter's file lacks. peft does not report them."""
    import peft

    stored = read_header(Path(folder) / WEIGHTS)
    expected = peft.get_peft_model_state_dict(tuned, adapter_name=adapter, save_embedding_layers=False)
    return [name for name in expected if name.endswith(("bias", "_indices")) and name not in stored]


def _require_mergeable(kind: str, task: str | None, folder: str) -> None:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    if task in OTHER_TASKS:
        raise ModelError(
            f"the adapter is for models of type {task}, not for a language model", where=folder, fix=MERGE_FIRST
        )
    tuner, config = PEFT_TYPE_TO_TUNER_MAPPING.get(kind), PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
    if tuner is None or config is None:
        fix = "upgrade peft, or merge the adapter into its base model first"
        raise ModelError(f"the installed peft does not support adapters of type {kind}", where=folder, fix=fix)
    if not hasattr(tuner, "merge_and_unload") or kind in ("ADAPTION_PROMPT", "XLORA"):
        raise cannot_be_merged(kind, folder)


def cannot_be_merged(kind: str, folder: str) -> ModelError:
    """Return the error for an adapter that does not change the weights of its base model."""
    return ModelError(
        f"an adapter of type {kind} cannot be merged",
        where=folder,
        why="preftune trains and scores models without adapters, so it merges the adapter into the weights",
        fix="use the base model, or an adapter type that changes weights, such as LORA",
    )


def merge_adapter(tuned: Any, where: str) -> Any:
    """Merge the adapter of a peft model into its weights and return the base model."""
    base = tuned.get_base_model()
    tied = bool(base.config.get_text_config().tie_word_embeddings)
    _untie(base)
    kind = str(next(iter(tuned.peft_config.values())).peft_type.value)
    try:
        with warnings_noted(where):
            model = tuned.merge_and_unload()
    except NotImplementedError as error:
        raise cannot_be_merged(kind, where) from error
    except Exception as error:
        raise load_error("adapter", where, error) from error
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if tied and last is not None and torch.equal(first.weight, last.weight):
        last.weight = first.weight
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = True
    elif tied and last is not None:
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
        note(f"note: {where}: the adapter changes a tied embedding; the merged model has tie_word_embeddings: false")
    return model


def _untie(base: Any) -> None:
    """Untie the output embedding from the input embedding if the adapter changes one of them.

    Merging changes weights in place, so with tied embeddings the adapter of one would also change the other.
    """
    embeddings = [base.get_input_embeddings(), base.get_output_embeddings()]
    inner = [_unwrapped(module) for module in embeddings]
    if None in embeddings or inner[0].weight is not inner[1].weight:
        return
    if any(module is not plain for module, plain in zip(embeddings, inner, strict=True)):
        weight = inner[1].weight
        inner[1].weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)


def _unwrapped(module: Any) -> Any:
    while hasattr(module, "get_base_layer") or hasattr(module, "original_module"):
        module = module.get_base_layer() if hasattr(module, "get_base_layer") else module.original_module
    return module


def resize_for(model: Any, config: Mapping[str, Any], folder: Path) -> None:
    """Resize the model's embedding to the adapter's number of rows, for adapters that were trained with added tokens.

    Raises ModelError if the adapter's file does not have all values of the new rows.
    """
    shapes = {name.removeprefix(PREFIX): shape for name, (_, shape) in read_header(folder / WEIGHTS).items()}
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    base_rows = first.weight.shape[0]
    embeddings = {name: module for name, module in model.named_modules() if module is first or module is last}
    rows = {name: _stored_rows(name, shapes) for name in embeddings}
    adapter_rows = {number for number, _ in rows.values() if number is not None}
    if adapter_rows <= {base_rows}:
        return
    number = max(adapter_rows)
    what = f"the adapter's embedding has {number} rows, but that of the base model has {base_rows}"
    fix = f"where it was trained, call resize_token_embeddings({number}) on the base model and save merge_and_unload()"
    shared = (last is None or last.weight is first.weight) and (
        bool(config.get("ensure_weight_tying")) or any(_has_untrained(name, config, shapes) for name in embeddings)
    )
    missing = [f"{name}.weight" for name, (_, is_complete) in rows.items() if not is_complete]
    if len(adapter_rows) > 1:
        why = f"the adapter's tensors also differ in their number of rows: {sorted(adapter_rows)}"
        raise ModelError(what, where=str(folder), why=why, fix=fix)
    if len(missing) == len(rows) or (missing and not shared):
        why = f"the adapter's file lacks {shortened(missing)}, so the new rows would get random values"
        raise ModelError(what, where=str(folder), why=why, fix=fix)
    _require_tokens(folder, number, what)
    model.resize_token_embeddings(number, mean_resizing=False)


def _require_rows(model: Any, config: Mapping[str, Any], folder: str) -> None:
    """Raise ModelError if the adapter trains single embedding rows that the base model does not have."""
    trained = config.get("trainable_token_indices") or config.get("token_indices") or []
    lists = list(trained.values()) if isinstance(trained, dict) else [trained]
    last = max((index for indices in lists for index in indices), default=-1)
    rows = model.get_input_embeddings().weight.shape[0]
    if last >= rows:
        raise ModelError(
            f"the adapter was trained for token {last}, but the base model's embedding has {rows} rows",
            where=folder,
            why="the adapter's file lacks the other new rows",
            fix=f"where it was trained, call resize_token_embeddings({last + 1}) (or more rows) on the base model and "
            "save merge_and_unload()",
        )


def _stored_rows(name: str, shapes: Mapping[str, Sequence[int]]) -> tuple[int | None, bool]:
    """Return the number of embedding rows in the adapter's tensors, and whether the file has all of their values."""
    for part in ("modules_to_save.weight", "base_layer.weight", "original_module.weight", "weight"):
        if f"{name}.{part}" in shapes:
            return shapes[f"{name}.{part}"][0], True
    if f"{name}.lora_embedding_A" in shapes:
        return shapes[f"{name}.lora_embedding_A"][1], False
    if f"{name}.lora_B.weight" in shapes:
        return shapes[f"{name}.lora_B.weight"][0], False
    return None, False


def _has_untrained(name: str, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> bool:
    """Return whether the adapter's file has the embedding from before training, which tied embeddings share."""
    trained = [saved for saved in config.get("modules_to_save") or () if f".{name}".endswith(f".{saved}")]
    parts = ("base_layer.weight", "original_module.weight", *(() if trained else ("weight",)))
    return any(f"{name}.{part}" in shapes for part in parts)


def _require_tokens(folder: Path, rows: int, what: str) -> None:
    """Raise ModelError if the adapter's tokenizer has more tokens than its embedding has rows."""
    import transformers

    if not (folder / "tokenizer_config.json").is_file():
        note(f"note: {folder}: {what}; the adapter's folder has no tokenizer, so that of the base model is used")
        return
    try:
        tokens = len(transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:
        raise load_error("tokenizer", str(folder), error) from error
    if tokens > rows:
        raise ModelError(
            f"the adapter's tokenizer has {tokens} tokens, but its embedding has {rows} rows",
            where=str(folder),
            fix="save the tokenizer that the adapter was trained with in the adapter's folder",
        )


def _require_complete(folder: str, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Raise ModelError if a tensor of the adapter is missing, or the base model has no module for it."""
    missing_names = [name.removeprefix(PREFIX).replace(".default", "") for name in missing]
    # peft saves a trained copy of a resized embedding twice, the second time under the name that it has inside peft.
    stored = read_header(Path(folder) / WEIGHTS)
    infix = ".modules_to_save"
    copies = [name for name in unexpected if infix in name and name.replace(infix, "") in stored]
    extra = [name.removeprefix(PREFIX).replace(".default", "") for name in unexpected if name not in copies]
    if not missing_names and not extra:
        return
    parts = []
    if missing_names:
        are = "is" if len(missing_names) == 1 else "are"
        parts.append(f"{len(missing_names)} of its tensors {are} missing: {shortened(missing_names)}")
    if extra:
        match = "matches" if len(extra) == 1 else "match"
        parts.append(f"{len(extra)} of its tensors {match} no module of the base model: {shortened(extra)}")
    raise ModelError(
        f"the adapter does not fit its base model: {'; '.join(parts)}",
        where=folder,
        why="the merged model would not be the model that was trained",
        fix=f"correct {ADAPTER_CONFIG} (base_model_name_or_path, target_modules), or save the adapter again",
    )


def _misfit_error(folder: str, error: Exception) -> ModelError:
    """Convert the exception that peft raised when it loaded the adapter to a ModelError."""
    if isinstance(error, KeyError):
        name = str(error.args[0]).removeprefix(PREFIX)
        return ModelError(
            f"the adapter does not fit its base model: 1 of its tensors is missing: {name}",
            where=folder,
            fix=f"save the adapter again, or correct {ADAPTER_CONFIG} (modules_to_save)",
        )
    shape = r"torch\.Size\(\[([\d, ]*)\]\)"
    sizes = re.findall(rf"size mismatch for (\S+): copying a param with shape {shape} .*? is {shape}", str(error))
    if not sizes:
        return load_error("adapter", folder, error)
    shapes = [
        f"{name.removeprefix(PREFIX).replace('.default', '')} ({stored.replace(', ', 'x')} in the adapter, "
        f"{needed.replace(', ', 'x')} in the base model)"
        for name, stored, needed in sizes
    ]
    have = "has" if len(shapes) == 1 else "have"
    return ModelError(
        f"the adapter does not fit its base model: {len(shapes)} of its tensors {have} the wrong shape: "
        f"{shortened(shapes)}",
        where=folder,
        fix=f"correct base_model_name_or_path or the rank in {ADAPTER_CONFIG}",
    )


def add_lora(
    model: Any,
    rank: int,
    alpha: float,
    targets: str | list[str],
    task: str = "CAUSAL_LM",
    variant: Variant = PLAIN,
    kept: str | None = None,
) -> Any:
    """Freeze `model` and add a new LoRA adapter, which does not change its outputs at first. `task`: peft's task type.

    `kept`: folder of an adapter that is loaded first, and stays unchanged below the new one. Raises ModelError if an
    entry of `targets` or `variant.modules_to_save` does not match any module.
    """
    import peft

    require_modules(model, variant.modules_to_save)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=expand_targets(model, targets),
        lora_dropout=0.0,
        task_type=task,
        use_rslora=variant.rslora,
        use_dora=variant.dora,
        modules_to_save=list(variant.modules_to_save) or None,
        init_lora_weights=True if variant.init == "default" else variant.init,
    )
    try:
        # The adapter has the model's dtype; the optimizer keeps fp32 copies of its weights.
        with warnings_noted("lora"):
            if kept:
                return stack(load_kept(model, kept), config)
            return peft.get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    except ValueError as error:
        fix = f"choose from the model's linear modules: {linear_modules(model)}"
        raise ModelError(str(error), where="lora.targets", fix=fix) from error


def load_kept(model: Any, folder: str) -> Any:
    """Return a peft model: `model` with the LoRA adapter in `folder`, frozen, below a new one (lora.adapter=keep).

    Raises ModelError as `load_adapter`, and for an adapter that cannot be saved together with a second one.
    """
    config = read_config(Path(folder))
    problems = {
        f"its type is {config.get('peft_type')}": config.get("peft_type") != "LORA",
        "it uses DoRA": bool(config.get("use_dora")),
        "it has modules_to_save": bool(config.get("modules_to_save")),
        "it trains biases": config.get("bias", "none") != "none" or bool(config.get("lora_bias")),
        "it trains single token embeddings": bool(config.get("trainable_token_indices")),
        "it trains parameters that are not modules": bool(config.get("target_parameters")),
    }
    reasons = [text for text, is_set in problems.items() if is_set]
    if reasons:
        what = f"this adapter cannot be kept below a new one: {', '.join(reasons)}"
        raise ModelError(what, where=folder, why="both are saved as one adapter", fix="set lora.adapter=merge")
    return load_adapter(model, folder, KEPT)


@contextmanager
def warnings_noted(where: str) -> Iterator[None]:
    """Print each warning of peft and transformers as one line, except HANDLED_WARNINGS."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = " ".join(str(warning.message).split())
        if not text.startswith(HANDLED_WARNINGS):
            note(f"note: {where}: {text}")
