"""Load and save model folders. Weights must be safetensors; code in a model folder is never run.

transformers takes seconds to import, so functions import it when they need it. Errors in the config or the data are
then reported without this delay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preftune.errors import ModelError, writing
from preftune.model import weights
from preftune.model.adapter import load_adapter, load_and_merge
from preftune.model.kept_adapter import KEPT
from preftune.model.locate import Source as Source
from preftune.model.locate import locate as locate
from preftune.model.precision import base_name, cast_like, smallest_exact_dtype
from preftune.model.quantised import dequantise, quantise, quantised_layers

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEMPLATES = {
    # For models without chat training: the transcript format of HH-RLHF, with EOS after each response.
    "dialogue": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '\n\n' + {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}[m['role']] }}"
        "{{ ': ' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n\nAssistant: ' }}{% endif %}"
    ),
}

TOKENIZER = "tokenizer_config.json"
CHAT_RECORD = "chat_settings.json"
"""File in a model folder with the chat settings of the run that trained it, if they differ from the defaults."""

NOT_HASHED = {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache", "_attn_implementation"}
"""Entries of a model's config that do not affect its outputs, or that enter the hash in a different way."""


def load_tokenizer(source: Source, chat_template: str | None = None) -> Any:
    """Load the tokenizer of a model. `chat_template` replaces its template: a name in TEMPLATES or a .jinja file."""
    import transformers

    where = tokenizer_folder(source)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, revision=source.revision, trust_remote_code=False)
        tokenizer("a")  # damaged settings fail only here
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of the tokenizers library
            raise
        raise weights.load_error("tokenizer", where, error) from error
    if chat_template is not None:
        tokenizer.chat_template = template(chat_template)
    return tokenizer


def has_chat_template(source: Source, tokenizer: Any = None, chat_template: str | None = None) -> bool:
    """Return whether messages can be rendered for the model: its tokenizer or the config has a chat template.

    A tokenizer in a local folder is not loaded for that.
    """
    if chat_template is not None:
        return True
    folder = Path(tokenizer_folder(source))
    if tokenizer is None and folder.is_dir():
        in_config = (folder / TOKENIZER).is_file() and _json(folder / TOKENIZER).get("chat_template")
        return bool(in_config) or (folder / "chat_template.jinja").is_file()
    return bool((tokenizer or load_tokenizer(source)).chat_template)


def tokenizer_folder(source: Source) -> str:
    """Return the folder or Hub id of the tokenizer: that of an adapter, if it has one."""
    own = source.adapter and (Path(source.adapter) / TOKENIZER).is_file()
    return source.adapter if own and source.adapter else source.base


def template(name: str) -> str:
    """Return a chat template: an entry of TEMPLATES, or the text of a file."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not Path(name).is_file():
        what = f"{name!r} is neither the name of a template ({', '.join(TEMPLATES)}) nor a file"
        raise ModelError(what, where="data.chat_template", fix="use one of these names, or the path of a template file")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        what = f"the template cannot be read: {error}"
        raise ModelError(what, where=name, fix="save the file as UTF-8 text") from error


def end_ids(source: Source, tokenizer: Any = None) -> list[int]:
    """Return the token ids that end a response according to generation_config.json and config.json.

    With a `tokenizer`, ids that are only in config.json count only if they are special tokens: some configs have an
    ordinary token as EOS, because of a wrong default. Raises ModelError if a file is damaged.
    """
    ids: list[int] = []
    for name, read in (("generation_config.json", _generation_ends), ("config.json", _config_ends)):
        try:
            more = read(source)
        except OSError:
            continue
        except Exception as error:  # of the library, for any other content
            raise weights.load_error(f"token ids that end a response ({name})", source.base, error) from error
        must_be_special = tokenizer is not None and name == "config.json"
        ids += [i for i in more if not must_be_special or i in special_ids(tokenizer)]
    return list(dict.fromkeys(ids))


def _generation_ends(source: Source) -> list[int]:
    import transformers

    config = transformers.GenerationConfig.from_pretrained(source.base, revision=source.revision)
    return id_list(config.eos_token_id)


def _config_ends(source: Source) -> list[int]:
    import transformers

    raw, _ = transformers.PretrainedConfig.get_config_dict(source.base, revision=source.revision)
    return id_list(raw.get("eos_token_id")) + id_list((raw.get("text_config") or {}).get("eos_token_id"))


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of special and added tokens, as opposed to pieces of text."""
    return {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}


def chat_record(source: Source) -> dict[str, Any]:
    """Return the chat settings of the run that trained the model; empty for models from other programs."""
    if source.run:
        run = Path(source.run)
        name = (
            "manifest.json" if (run / "manifest.json").is_file() else ".manifest.json"
        )  # its copy, see train.manifest
        return dict(_json(run / name).get("chat") or {})
    return _json(Path(source.adapter or source.base) / CHAT_RECORD)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        fix = "restore the file, or save the model again"
        raise ModelError(f"the file cannot be read: {error}", where=str(path), fix=fix) from error


def id_list(ids: Any) -> list[int]:
    """Return the token ids of a config entry as a list. The entry is null, a number or a list."""
    return [] if ids is None else [int(i) for i in (ids if isinstance(ids, list) else [ids])]


def load_model(source: Source, dtype: torch.dtype, keep_quant: bool = False) -> Any:
    """Load the model in `dtype` and in evaluation mode, without dropout. An adapter is merged in fp32.

    A quantised base (`source.quant`) is quantised, dequantised and then merged: the values that training used. With
    `keep_quant`, it stays quantised in memory, and the adapter is not merged. Raises ModelError if a tensor of the
    model is missing in its files or has a different shape in them.
    """
    if not source.adapter and not source.quant:
        return _read(source, dtype)
    if source.quant and keep_quant:
        model = quantise_exactly(partial(_read, source), source_dtype(source), dtype, source.quant)
        return with_adapter(model, source.adapter, dtype).eval() if source.adapter else model
    model = _read(source, torch.float32)
    if source.quant:
        model = dequantise(quantise(model, source.quant), torch.float32)
    model = load_and_merge(model, source.adapter) if source.adapter else model
    return cast_like_source(model, source, dtype).eval()


def quantise_exactly(read: Callable[[torch.dtype], Any], exact: torch.dtype, dtype: torch.dtype, kind: str) -> Any:
    """Return the model of `read` with quantised layers, for computation in `dtype`.

    The weights are quantised as they are stored, in the dtype `exact`, so that `dtype` does not change the result.
    """
    model = quantise(read(exact), kind)
    if exact != dtype:
        cast_like(model, read(dtype), dtype)
        for _, layer in quantised_layers(model):
            layer.dtype = dtype
    return model


def with_adapter(model: Any, folder: str, dtype: torch.dtype) -> Any:
    """Return `model` with the adapter in `folder`, not merged, in `dtype`."""
    tuned = load_adapter(model, folder).requires_grad_(False)
    for name, parameter in tuned.named_parameters():
        if ".lora_" in name or ".modules_to_save." in name:
            parameter.data = parameter.data.to(dtype)
    return tuned


def cast_like_source(model: Any, source: Source, dtype: torch.dtype) -> Any:
    """Cast `model`, the fp32 model of `source` with a merged adapter, as if it were loaded in `dtype`."""
    return model if dtype == torch.float32 else cast_like(model, _read(source, dtype), dtype)


def _read(source: Source, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    model, mismatch = weights.read_model(AutoModelForCausalLM, "model", source.base, source.revision, dtype)
    weights.require_complete(model, mismatch, source.base)
    weights.require_finite(model, source.base)
    return model.eval()


def load_config(source: Source) -> Any:
    """Load only the config of a model. Raises ModelError."""
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(source.base, revision=source.revision, trust_remote_code=False)
    except Exception as error:
        raise weights.load_error("config", source.base, error) from error


def max_positions(config: Any) -> int | None:
    """Return the longest sequence that the model supports, or None if its config does not have a limit."""
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def stored_positions(source: Source) -> int | None:
    """Return the longest sequence that config.json names, without importing transformers; None if it does not."""
    config = _json(Path(source.base) / "config.json")
    limit = config.get("text_config", config).get("max_position_embeddings")
    return limit if isinstance(limit, int) else None


def source_dtypes(source: Source) -> dict[str, torch.dtype]:
    """Return the stored dtype of every tensor of the model; empty if its files are not available."""
    return weights.stored_dtypes(source.base, source.revision)


def source_dtype(source: Source) -> torch.dtype:
    """Return the dtype of the stored weights; for mixed dtypes, the smallest that holds all values exactly."""
    stored = source_dtypes(source)
    if stored:
        return smallest_exact_dtype(set(stored.values()))
    config = load_config(source).dtype
    return config if isinstance(config, torch.dtype) else torch.float32


def disable_dropout(model: nn.Module) -> None:
    """Set all dropout rates to 0, so that training mode, which gradient checkpointing needs, has the same outputs."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def checkpoint_activations(model: Any) -> None:
    """Enable gradient checkpointing. transformers supports it only in training mode, so dropout is disabled."""
    disable_dropout(model)
    if hasattr(model, "activation_checkpointing_enable"):  # the name in newer transformers
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if hasattr(model, "peft_config"):  # frozen embeddings: the first layer's input would not require a gradient
        model.enable_input_require_grads()
    model.train()


def weights_hash(model: Any) -> str:
    """Return the SHA-256 of the model's config and of the names, shapes, dtypes and bytes of its weights and buffers.

    The weights of a LoRA adapter are not included: a new adapter does not change the outputs. Those of an adapter that
    is kept below a new one are included.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = {key: value for key, value in base.config.to_dict().items() if key not in NOT_HASHED}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name in sorted(name for name in tensors if ".lora_" not in name or f".{KEPT}" in name):
        tensor = tensors[name].detach()
        digest.update(f"{base_name(name)} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_stamps(source: Source) -> dict[str, list[int]]:
    """Return size and modification time of the weight and config files of a model folder; empty for a Hub id."""
    folders = [Path(name).expanduser() for name in (source.base, source.adapter) if name]
    files = [file for folder in folders for suffix in ("*.safetensors", "*config.json") for file in folder.glob(suffix)]
    stats = ((str(file), file.stat()) for file in sorted(files))
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats}


def save_model(model: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
    """Write a folder that `from_pretrained` can load: the full model, or the adapter of a PEFT model."""
    weights.silence_transformers()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, **options)
    save_tokenizer(tokenizer, folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer with its chat template to `folder`."""
    with writing(folder):
        tokenizer.save_pretrained(folder)
