"""Model folders in, model folders out. Weights are safetensors only; no code from a model folder is run.

transformers takes seconds to import, so it is imported where it is needed: a mistake in the config or the data is
reported without it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from preftune.errors import ModelError, writing
from preftune.model.adapter import CONFIG as ADAPTER_CONFIG
from preftune.model.adapter import load_and_merge, read_config
from preftune.model.precision import base_name, cast_like, smallest_exact_dtype
from preftune.model.weights import (
    load_error,
    read_model,
    require_complete,
    silence_transformers,
    stored_dtypes,
    weight_files,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEMPLATES = {
    # For models that never saw a chat: the transcript form of HH-RLHF, each answer ended by EOS.
    "dialogue": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '\n\n' + {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}[m['role']] }}"
        "{{ ': ' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n\nAssistant: ' }}{% endif %}"
    ),
}


CHAT_RECORD = "chat_settings.json"
"""File of a model folder with the chat settings that its run was trained with, where they are not the defaults."""

NOT_ARITHMETIC = {
    "_name_or_path",
    "architectures",
    "dtype",
    "transformers_version",
    "use_cache",
    "_attn_implementation",
}
"""Entries of a model's config that do not change its numbers, or are hashed otherwise."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from. `adapter` is a PEFT folder that sits on `base`, if the path named one; `run` is the run
    folder of a checkpoint of `base`."""

    base: str
    revision: str | None = None
    adapter: str | None = None
    run: str | None = None


def locate(path: str, where: str = "model.path") -> Source:
    """What `path` names, checked as far as it can be without loading. Raises ModelError for a folder with no model."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if (folder / ADAPTER_CONFIG).is_file():
            return _locate_adapter(folder)
        if not (folder / "config.json").is_file():
            final = folder / "final"
            of_run = (final / "config.json").is_file() or (final / ADAPTER_CONFIG).is_file()
            fix = f"{where} names a folder with config.json, *.safetensors and the tokenizer's files"
            raise ModelError(
                "no config.json: not a Hugging Face model folder",
                where=str(folder),
                fix=f"the model of this run is {final}" if of_run else fix,
            )
        if not any(folder.glob("*.safetensors")):
            pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
            what = f"weights only as pickle ({pickles[0]})" if pickles else "no *.safetensors weights"
            raise ModelError(what, where=str(folder), fix="convert the weights to safetensors: pickles can run code")
        weight_files(str(folder))
        return Source(str(folder))
    name, _, revision = path.partition("@")
    looks_local = path.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_local or folder.parent.is_dir():
        raise ModelError("no such folder", where=f"{where} {path}", fix=_nearby(folder))
    if not _reachable(name, revision):
        raise ModelError(
            "no such folder, and no Hub can be asked for a model of this name",
            where=f"{where} {path}",
            why="the Hub does not answer, and the model is not in the local cache",
            fix=_nearby(folder),
        )
    return Source(name, revision or None)


def _locate_adapter(folder: Path) -> Source:
    """An adapter and its base, which must be a whole model: a folder, or a Hub id with the adapter's `revision`."""
    config = read_config(folder)
    path, revision = str(config["base_model_name_or_path"]), config.get("revision")
    pinned = f"{path}@{revision}" if isinstance(revision, str) and revision and not Path(path).is_dir() else path
    base = locate(pinned, f"{folder / ADAPTER_CONFIG} base_model_name_or_path")
    if base.adapter:
        raise ModelError(
            f"its base is an adapter, too: {base.adapter}",
            where=str(folder),
            fix="merge the base first: load it with peft and save merge_and_unload()",
        )
    return Source(base.base, base.revision, str(folder))


def _reachable(name: str, revision: str) -> bool:
    """Whether a Hub model is in the cache or the Hub answers: its client would try for a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision or None), str):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    if any(key.lower() in ("http_proxy", "https_proxy", "all_proxy") for key in os.environ):
        return True  # only the client knows its way
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=3).close()
    except OSError:
        return False
    return True


def _nearby(folder: Path) -> str:
    parent = folder.parent
    while not parent.is_dir():
        parent = parent.parent
    names = sorted(p.name for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    missing = folder.relative_to(parent).parts[0] if folder.is_relative_to(parent) else folder.name
    found = difflib.get_close_matches(missing, names, n=3) or names[:8]
    return f"folders in {parent}: {', '.join(found) or 'none'}"


def load_tokenizer(source: Source, chat_template: str | None = None) -> Any:
    """The tokenizer of a model, with another chat template if asked: a name of TEMPLATES or a .jinja file."""
    import transformers

    where = source.adapter if source.adapter and _has_tokenizer(source.adapter) else source.base
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, revision=source.revision, trust_remote_code=False)
    except Exception as error:
        raise load_error("tokenizer", where, error) from error
    if chat_template is not None:
        tokenizer.chat_template = template(chat_template)
    return tokenizer


def _has_tokenizer(folder: str) -> bool:
    return (Path(folder) / "tokenizer_config.json").is_file()


def template(name: str) -> str:
    """A chat template: one of TEMPLATES by name, or the text of a file."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not Path(name).is_file():
        raise ModelError(
            f"neither a template's name ({', '.join(TEMPLATES)}) nor a file: {name}",
            where="data.chat_template",
        )
    return Path(name).read_text(encoding="utf-8")


def end_ids(source: Source, tokenizer: Any = None) -> list[int]:
    """Token ids that the model's folder names as the end of a generation, in generation_config.json or config.json.

    Of those that only config.json names, the ones that are special tokens of `tokenizer`, if it is given.
    """
    import transformers

    found: list[int] = []
    with suppress(OSError):
        config = transformers.GenerationConfig.from_pretrained(source.base, revision=source.revision)
        found = id_list(config.eos_token_id)
    with suppress(OSError):
        raw, _ = transformers.PretrainedConfig.get_config_dict(source.base, revision=source.revision)
        more = id_list(raw.get("eos_token_id")) + id_list((raw.get("text_config") or {}).get("eos_token_id"))
        found += [i for i in more if tokenizer is None or i in special_ids(tokenizer)]
    return list(dict.fromkeys(found))


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that are not made of text. A config may name an ordinary token as EOS by a wrong default."""
    return {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}


def chat_record(source: Source) -> dict[str, Any]:
    """How the run that made the model rendered chat messages; empty for a model of other origin."""
    if source.run:
        return dict(_json(Path(source.run) / "manifest.json").get("chat") or {})
    return _json(Path(source.adapter or source.base) / CHAT_RECORD)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read: {error}", where=str(path)) from error
    return dict(found)


def id_list(ids: Any) -> list[int]:
    """Token ids as a list, however a generation config spells them."""
    return [] if ids is None else [int(i) for i in (ids if isinstance(ids, list) else [ids])]


def load_model(source: Source, dtype: torch.dtype) -> Any:
    """The model in `dtype`, an adapter merged into it in fp32, in evaluation mode: dropout is off.

    Raises ModelError if a tensor of the model is missing in its files or has another shape there.
    """
    if not source.adapter:
        return _read(source, dtype)
    return cast_like_source(load_and_merge(_read(source, torch.float32), source.adapter), source, dtype).eval()


def cast_like_source(model: Any, source: Source, dtype: torch.dtype) -> Any:
    """`model`, the fp32 model of `source` with an adapter merged into it, as it would be read in `dtype`."""
    return model if dtype == torch.float32 else cast_like(model, _read(source, dtype), dtype)


def _read(source: Source, dtype: torch.dtype) -> Any:
    import transformers

    auto = transformers.AutoModelForCausalLM
    model, unread = read_model(auto, "model", source.base, source.revision, dtype)
    require_complete(model, unread, source.base)
    return model.eval()


def load_config(source: Source) -> Any:
    """The model's config alone."""
    import transformers

    return transformers.AutoConfig.from_pretrained(source.base, revision=source.revision, trust_remote_code=False)


def max_positions(config: Any) -> int | None:
    """Longest sequence that the model was built for, if its config says so."""
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def source_dtypes(source: Source) -> dict[str, torch.dtype]:
    """The precision of every tensor of the model as it is stored; empty where the files cannot be had."""
    return stored_dtypes(source.base, source.revision)


def source_dtype(source: Source) -> torch.dtype:
    """The precision that the weights were saved in; of mixed ones the smallest that holds all their numbers."""
    stored = source_dtypes(source)
    if stored:
        return smallest_exact_dtype(set(stored.values()))
    config = load_config(source).dtype
    return config if isinstance(config, torch.dtype) else torch.float32


def disable_dropout(model: nn.Module) -> None:
    """Make dropout impossible, so that training mode (which gradient checkpointing needs) computes the same."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass. transformers does so in training mode only, so dropout is removed."""
    disable_dropout(model)
    if hasattr(model, "activation_checkpointing_enable"):  # the name in newer transformers
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if hasattr(model, "peft_config"):  # with frozen embeddings, nothing would need a gradient at the first layer
        model.enable_input_require_grads()
    model.train()


def weights_hash(model: Any) -> str:
    """sha256 over the model's config and names, shapes, types and bytes of all its weights and buffers.

    Only the weights of a fresh adapter are left out, which change nothing.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = {key: value for key, value in base.config.to_dict().items() if key not in NOT_ARITHMETIC}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in _base_weights(model):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def file_stamps(source: Source) -> dict[str, list[int]]:
    """Size and time of change of the files that hold the weights and configs of model folders; empty for a Hub id."""
    folders = [Path(name).expanduser() for name in (source.base, source.adapter) if name]
    files = [file for folder in folders for suffix in ("*.safetensors", "*config.json") for file in folder.glob(suffix)]
    stats = ((str(file), file.stat()) for file in sorted(files))
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats}


def _base_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    everything = [*model.named_parameters(), *model.named_buffers()]
    named = {name: tensor.detach() for name, tensor in everything if ".lora_" not in name}
    for name in sorted(named):
        yield base_name(name), named[name]


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().cpu().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy().data)


def save_model(model: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
    """Write a folder that `from_pretrained` loads: a full model, or for a PEFT model its adapter."""
    silence_transformers()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, **options)
        tokenizer.save_pretrained(folder)
