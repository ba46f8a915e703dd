"""PEFT adapters: a fresh one for training, and a saved one that is merged into its base."""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preftune.errors import ModelError
from preftune.model.weights import load_error, note, read_header, shortened

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OTHER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM", "QUESTION_ANS")
ALL_LINEAR = "all-linear"
PREFIX = "base_model.model."  # peft's, before every name of the base
# What peft 0.21 warns of in every run, or where peft or `merged` has taken care of it.
HANDLED = (
    "fan_in_fan_out is set to",
    "Specified to not save vera_A and vera_B",
    "`is_gradient_checkpointing` is deprecated",
    "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter",
    "Model with `tie_word_embeddings=True` and the tied_target_modules=",
    "Setting `save_embedding_layers` to `True`",
    "Input and output embeddings are no longer tied after merging",
)


def read_config(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says. Raises ModelError if it names no base, or the weights are not safetensors."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{CONFIG} names no base model", where=str(folder)) from error
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{CONFIG} names no base model", where=str(folder), fix="set base_model_name_or_path to the base's folder"
        )
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        what = f"weights only as pickle ({pickles[0]})" if pickles else f"no {WEIGHTS}"
        raise ModelError(what, where=str(folder), fix="convert the weights to safetensors: pickles can run code")
    return dict(config)


def load_and_merge(model: Any, folder: str) -> Any:
    """`model` with the adapter in `folder` merged into its weights.

    Raises ModelError for an adapter that does not fit the model, is not complete, or cannot be merged.
    """
    import peft

    config = read_config(Path(folder))
    _require_mergeable(str(config.get("peft_type")), config.get("task_type"), folder)
    resize_for(model, config, Path(folder))
    _require_rows(model, config, folder)
    try:
        with _warnings_noted(folder):
            settings = peft.PeftConfig.from_pretrained(folder)
            settings.inference_mode = True
            kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(settings.task_type, peft.PeftModel)
            # as PeftModel.from_pretrained does it, which drops tensors that fit nowhere
            names = getattr(model, "_checkpoint_conversion_mapping", {})
            tuned = kind(model, settings)
            found = tuned.load_adapter(folder, "default", torch_device="cpu", key_mapping=names)
    except Exception as error:
        raise _does_not_fit(folder, error) from error
    _require_complete(folder, [*found.missing_keys, *_passed_over(tuned, folder)], found.unexpected_keys)
    return merge_adapter(tuned, folder)


def _passed_over(tuned: Any, folder: str) -> list[str]:
    """Trained biases and positions of trained weights that the adapter's file lacks. peft does not report them."""
    import peft

    stored = read_header(Path(folder) / WEIGHTS)
    expected = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
    return [name for name in expected if name.endswith(("bias", "_indices")) and name not in stored]


def _require_mergeable(kind: str, task: str | None, folder: str) -> None:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    if task in OTHER_TASKS:
        raise ModelError(
            f"the adapter is for models of kind {task}, not for a language model",
            where=folder,
            fix="merge it first: load it with peft and save merge_and_unload()",
        )
    tuner, config = PEFT_TYPE_TO_TUNER_MAPPING.get(kind), PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
    if tuner is None or config is None:
        raise ModelError(f"an adapter of unknown kind {kind}", where=folder, fix="upgrade peft, or merge it first")
    if not hasattr(tuner, "merge_and_unload") or kind in ("ADAPTION_PROMPT", "XLORA"):
        raise cannot_be_merged(kind, folder)


def cannot_be_merged(kind: str, folder: str) -> ModelError:
    """The error for an adapter whose effect is not a change of the base's weights."""
    return ModelError(
        f"an adapter of kind {kind} cannot be merged",
        where=folder,
        why="preftune trains and scores a model's own weights.",
        fix="use the base model, or an adapter of a kind that changes weights, such as LORA",
    )


def merge_adapter(tuned: Any, where: str) -> Any:
    """The model below a peft model, the adapter merged into its weights."""
    base = tuned.get_base_model()
    tied = bool(base.config.get_text_config().tie_word_embeddings)
    _untie(base)
    kind = str(next(iter(tuned.peft_config.values())).peft_type.value)
    try:
        with _warnings_noted(where):
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
        note(
            f"note: {where}: the adapter is on a tied embedding; the merged model has two, tie_word_embeddings is false"
        )
    return model


def _untie(base: Any) -> None:
    """Untie the output embedding if an adapter changes it or the input embedding that it is tied to.

    Merging changes weights in place, so with tied embeddings the adapter of one would change the other too.
    """
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    inner = [_wrapped(module) for module in ends]
    if None in ends or inner[0].weight is not inner[1].weight:
        return
    if any(module is not plain for module, plain in zip(ends, inner, strict=True)):
        weight = inner[1].weight
        inner[1].weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)


def _wrapped(module: Any) -> Any:
    while hasattr(module, "get_base_layer") or hasattr(module, "original_module"):
        module = module.get_base_layer() if hasattr(module, "get_base_layer") else module.original_module
    return module


def resize_for(model: Any, config: Mapping[str, Any], folder: Path) -> None:
    """Give the model's embedding as many rows as the adapter's has, which was trained with added tokens.

    Raises ModelError unless the adapter has all values of the rows that are new.
    """
    shapes = {name.removeprefix(PREFIX): shape for name, (_, shape) in read_header(folder / WEIGHTS).items()}
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    own = first.weight.shape[0]
    ends = {name: module for name, module in model.named_modules() if module is first or module is last}
    rows = {name: _rows(name, shapes) for name in ends}
    wanted = {number for number, _ in rows.values() if number is not None}
    if wanted <= {own}:
        return
    number = max(wanted)
    what = f"the adapter's embedding has {number} rows, the base {own}"
    fix = f"merge it first, where it was trained: resize_token_embeddings({number}), then save merge_and_unload()"
    shared = (last is None or last.weight is first.weight) and (
        bool(config.get("ensure_weight_tying")) or any(_has_untrained(name, config, shapes) for name in ends)
    )
    lacking = [f"{name}.weight" for name, (_, whole) in rows.items() if not whole]
    if len(wanted) > 1:
        raise ModelError(f"{what}, and its own tensors differ: {sorted(wanted)}", where=str(folder), fix=fix)
    if len(lacking) == len(rows) or (lacking and not shared):
        why = f"The adapter's file lacks {shortened(lacking)}, so the new rows would get random values."
        raise ModelError(what, where=str(folder), why=why, fix=fix)
    _require_tokens(folder, number, what)
    model.resize_token_embeddings(number, mean_resizing=False)


def _require_rows(model: Any, config: Mapping[str, Any], folder: str) -> None:
    """Raises ModelError if the adapter trains single rows of the embedding that the base does not have."""
    named = config.get("trainable_token_indices") or config.get("token_indices") or []
    lists = list(named.values()) if isinstance(named, dict) else [named]
    last = max((index for indices in lists for index in indices), default=-1)
    rows = model.get_input_embeddings().weight.shape[0]
    if last >= rows:
        raise ModelError(
            f"the adapter was trained for token {last}, but the base's embedding has {rows} rows",
            where=folder,
            why="The adapter's file lacks the other new rows.",
            fix=f"merge it first, where it was trained: resize_token_embeddings({last + 1}) or more rows, then save "
            "merge_and_unload()",
        )


def _rows(name: str, shapes: Mapping[str, Sequence[int]]) -> tuple[int | None, bool]:
    """How many rows an embedding has according to the adapter's tensors, and whether all of its values are there."""
    for part in ("modules_to_save.weight", "base_layer.weight", "original_module.weight", "weight"):
        if f"{name}.{part}" in shapes:
            return shapes[f"{name}.{part}"][0], True
    if f"{name}.lora_embedding_A" in shapes:
        return shapes[f"{name}.lora_embedding_A"][1], False
    if f"{name}.lora_B.weight" in shapes:
        return shapes[f"{name}.lora_B.weight"][0], False
    return None, False


def _has_untrained(name: str, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether the adapter's file has an embedding as it was before training: that of both, where they are tied."""
    trained = [saved for saved in config.get("modules_to_save") or () if f".{name}".endswith(f".{saved}")]
    parts = ("base_layer.weight", "original_module.weight", *(() if trained else ("weight",)))
    return any(f"{name}.{part}" in shapes for part in parts)


def _require_tokens(folder: Path, rows: int, what: str) -> None:
    """The added rows belong to tokens of the adapter's own tokenizer."""
    import transformers

    if not (folder / "tokenizer_config.json").is_file():
        note(f"note: {folder}: {what}; the adapter's folder has no tokenizer, so the base's is used")
        return
    try:
        tokens = len(transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:
        raise load_error("tokenizer", str(folder), error) from error
    if tokens > rows:
        raise ModelError(
            f"the adapter's tokenizer has {tokens} tokens, its embedding {rows} rows",
            where=str(folder),
            fix="save the tokenizer that the adapter was trained with into its folder",
        )


def _require_complete(folder: str, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Raises ModelError if a tensor of the adapter is missing, or has no place in the base."""
    lost = [name.removeprefix(PREFIX).replace(".default", "") for name in missing]
    # peft saves a trained copy of a resized embedding a second time, under the name that it has inside peft
    stored = read_header(Path(folder) / WEIGHTS)
    infix = ".modules_to_save"
    again = [name for name in unexpected if infix in name and name.replace(infix, "") in stored]
    left = [name.removeprefix(PREFIX).replace(".default", "") for name in unexpected if name not in again]
    if not lost and not left:
        return
    parts = []
    if lost:
        parts.append(f"{len(lost)} of its tensors {'is' if len(lost) == 1 else 'are'} missing: {shortened(lost)}")
    if left:
        parts.append(
            f"{len(left)} of its tensors {'fits' if len(left) == 1 else 'fit'} nowhere in the base: {shortened(left)}"
        )
    raise ModelError(
        f"the adapter does not fit its base: {'; '.join(parts)}",
        where=folder,
        why="The merged model would not be the one that was trained.",
        fix=f"correct {CONFIG} (base_model_name_or_path, target_modules), or save the adapter again",
    )


def _does_not_fit(folder: str, error: Exception) -> ModelError:
    """What peft said when the adapter could not be put on its base, as our error."""
    if isinstance(error, KeyError):
        name = str(error.args[0]).removeprefix(PREFIX)
        return ModelError(
            f"the adapter does not fit its base: 1 of its tensors is missing: {name}",
            where=folder,
            fix=f"save the adapter again, or correct {CONFIG} (modules_to_save)",
        )
    shape = r"torch\.Size\(\[([\d, ]*)\]\)"
    sizes = re.findall(rf"size mismatch for (\S+): copying a param with shape {shape} .*? is {shape}", str(error))
    if not sizes:
        return load_error("adapter", folder, error)
    told = [
        f"{name.removeprefix(PREFIX).replace('.default', '')} ({stored.replace(', ', 'x')} in the adapter, "
        f"{needed.replace(', ', 'x')} in the base)"
        for name, stored, needed in sizes
    ]
    return ModelError(
        f"the adapter does not fit its base: {len(told)} tensors have another shape: {shortened(told)}",
        where=folder,
        fix=f"correct base_model_name_or_path or the rank in {CONFIG}",
    )


def add_lora(model: Any, rank: int, alpha: float, targets: str | list[str], task: str = "CAUSAL_LM") -> Any:
    """Freeze `model` and put a fresh LoRA adapter on it: at first it changes nothing. `task` is peft's name for it.

    Raises ModelError if one of `targets` matches no module.
    """
    import peft

    require_targets(model, targets)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, task_type=task)
    try:
        # the adapter keeps the model's dtype: fp32 masters of its weights are the optimizer's business
        with _warnings_noted("lora.targets"):
            return peft.get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    except ValueError as error:
        raise ModelError(str(error), where="lora.targets", fix=f"linear modules here: {_linear(model)}") from error


def require_targets(model: Any, targets: str | list[str]) -> None:
    """Raises ModelError for a name, or a pattern given as text, that matches no module of the model."""
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return
    named = [targets] if isinstance(targets, str) else targets
    lost = [target for target in named if not matches_module(model, target, targets)]
    if not lost and named:
        return
    told = [f"{name!r}{_suggestion(model, name, targets)}" for name in lost]
    raise ModelError(
        f"no module of the model matches {', '.join(told)}" if lost else "the list is empty",
        where="lora.targets",
        why="A list holds names of modules; text is all-linear or a regular expression for whole names.",
        fix=f"linear modules here: {_linear(model)}",
    )


def _suggestion(model: Any, name: str, targets: str | list[str]) -> str:
    """What was meant by a name that matches nothing, in brackets; empty if nothing is near."""
    known = sorted({path.rpartition(".")[2] for path, _ in model.named_modules() if path} | {ALL_LINEAR})
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        return ""
    if close[0] == ALL_LINEAR:
        return f" (did you mean targets: {ALL_LINEAR}?)"
    return f" (did you mean targets: [{close[0]}]?)" if isinstance(targets, str) else f" (did you mean {close[0]!r}?)"


def matches_module(model: Any, target: str, targets: str | list[str]) -> bool:
    """Whether a target matches a module, by peft's rule for lists of names and for patterns."""
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(targets, list):
        return any(name == target or name.endswith(f".{target}") for name in names)
    try:
        pattern = re.compile(target)
    except re.error as error:
        raise ModelError(f"not a regular expression: {target!r}: {error}", where="lora.targets") from error
    return any(pattern.fullmatch(name) for name in names)


def _linear(model: Any) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}))


@contextmanager
def _warnings_noted(where: str) -> Iterator[None]:
    """Warnings that peft and transformers give while open: one line for each, without those that are `HANDLED`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = " ".join(str(warning.message).split())
        if not text.startswith(HANDLED):
            note(f"note: {where}: {text}")
