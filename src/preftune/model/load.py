"""Model folders in, model folders out. Weights are safetensors only; no code from a model folder is run.

transformers takes seconds to import, so it is imported where it is needed: a mistake in the config or the data is
reported without it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from preftune.errors import ModelError, writing

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
    """Where a model comes from. `adapter` is a PEFT folder that sits on `base`, if the path named one."""

    base: str
    revision: str | None = None
    adapter: str | None = None


def locate(path: str, where: str = "model.path") -> Source:
    """What `path` names, checked as far as it can be without loading. Raises ModelError for a folder with no model."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        adapter = folder / "adapter_config.json"
        if adapter.is_file():
            try:
                base = json.loads(adapter.read_text())["base_model_name_or_path"]
            except (ValueError, KeyError, TypeError) as error:
                raise ModelError("adapter_config.json names no base model", where=str(folder)) from error
            return Source(str(base), adapter=str(folder))
        if not (folder / "config.json").is_file():
            raise ModelError(
                "no config.json: not a Hugging Face model folder",
                where=str(folder),
                fix=f"{where} names a folder with config.json, *.safetensors and the tokenizer's files",
            )
        if not any(folder.glob("*.safetensors")):
            pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
            what = f"weights only as pickle ({pickles[0]})" if pickles else "no *.safetensors weights"
            raise ModelError(what, where=str(folder), fix="convert the weights to safetensors: pickles can run code")
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
        raise refused("tokenizer", where, error) from error
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


def end_ids(source: Source) -> list[int]:
    """Token ids that the model itself treats as the end of a generation."""
    import transformers

    try:
        config = transformers.GenerationConfig.from_pretrained(source.base, revision=source.revision)
    except OSError:
        return []
    return as_ids(config.eos_token_id)


def as_ids(ids: Any) -> list[int]:
    """Token ids as a list, however a generation config spells them."""
    return [] if ids is None else [int(i) for i in (ids if isinstance(ids, list) else [ids])]


def load_model(source: Source, dtype: torch.dtype) -> Any:
    """The model in `dtype`, an adapter merged into it, in evaluation mode: dropout is off."""
    import transformers

    quiet()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source.base,
            revision=source.revision,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except Exception as error:
        raise refused("model", source.base, error) from error
    if source.adapter:
        import peft

        try:
            model = peft.PeftModel.from_pretrained(model, source.adapter).merge_and_unload()
        except Exception as error:
            raise refused("adapter", source.adapter, error) from error
    return model.eval()


def load_config(source: Source) -> Any:
    """The model's config alone."""
    import transformers

    return transformers.AutoConfig.from_pretrained(source.base, revision=source.revision, trust_remote_code=False)


def positions(config: Any) -> int | None:
    """Longest sequence that the model was built for, if its config says so."""
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def source_dtype(source: Source) -> torch.dtype:
    """Precision that the weights were saved in."""
    found = load_config(source).dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def refused(what: str, where: str, error: Exception) -> ModelError:
    """What a library said when it could not load something, as our error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) or type(error).__name__
    fix = ""
    if not Path(where).is_dir():
        fix = "give a local folder, or a Hub id that this machine can reach"
    elif "trust_remote_code" in str(error) or "custom code" in str(error):
        fix = "models that bring their own code are not run"
    return ModelError(f"cannot load the {what}: {text}", where=where, fix=fix)


def quiet() -> None:
    """transformers draws a bar while it loads weights; the run has its own display."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def add_lora(model: Any, rank: int, alpha: float, targets: str | list[str], task: str = "CAUSAL_LM") -> Any:
    """Freeze `model` and put a fresh LoRA adapter on it: at first it changes nothing. `task` is peft's name for it."""
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, task_type=task)
    try:
        # the adapter keeps the model's dtype: fp32 masters of its weights are the optimizer's business
        return peft.get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(str(error), where="lora.targets", fix=f"linear modules here: {', '.join(linear)}") from error


def no_dropout(model: nn.Module) -> None:
    """Make dropout impossible, so that training mode (which gradient checkpointing needs) computes the same."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass. transformers does so in training mode only, so dropout is removed."""
    no_dropout(model)
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


def files_of(source: Source) -> dict[str, list[int]]:
    """Size and time of change of the files that hold the weights and configs of model folders; empty for a Hub id."""
    folders = [Path(name).expanduser() for name in (source.base, source.adapter) if name]
    files = [file for folder in folders for suffix in ("*.safetensors", "*config.json") for file in folder.glob(suffix)]
    stats = ((str(file), file.stat()) for file in sorted(files))
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats}


def _base_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    everything = [*model.named_parameters(), *model.named_buffers()]
    named = {name: tensor.detach() for name, tensor in everything if ".lora_" not in name}
    for name in sorted(named):
        yield name.replace("base_model.model.", "").replace(".base_layer", ""), named[name]


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().cpu().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy().data)


def save_model(model: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
    """Write a folder that `from_pretrained` loads: a full model, or for a PEFT model its adapter."""
    quiet()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, **options)
        tokenizer.save_pretrained(folder)
