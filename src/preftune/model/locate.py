"""Find where a model is loaded from, and check what can be checked without loading it. Nothing here imports torch."""

from __future__ import annotations

import difflib
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from preftune.errors import ModelError
from preftune.files import changed_files, read_sealed
from preftune.model.weight_files import PICKLES_RUN_CODE, shortened, weight_files

ADAPTER_CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUANT_RECORD = "quant_config.json"
"""File in an adapter folder with the storage of the base weights that the adapter was trained on: {"quant": "nf4"}."""
QUANTS = ("nf4", "int8")
MERGE_FIRST = "load it with peft, save the result of merge_and_unload(), and use that folder"


@dataclass(frozen=True, slots=True)
class Source:
    """Where to load a model from: `base` is a folder or Hub id, `adapter` a PEFT folder for this base model, `run` the
    run folder whose checkpoint is loaded into `base`, `quant` the storage of the base's linear layers (QUANTS)."""

    base: str
    revision: str | None = None
    adapter: str | None = None
    run: str | None = None
    quant: str | None = None


def split_quant(path: str) -> tuple[str, str | None]:
    """Return the path of a model and its quantisation: `MODEL:nf4` is MODEL with its linear layers in nf4."""
    name, _, kind = path.rpartition(":")
    return (name, kind) if name and kind in QUANTS and not Path(path).exists() else (path, None)


def with_quant(path: str, quant: str | None) -> str:
    """Return the path of a model whose linear layers are quantised as in model.quant; see `split_quant`."""
    return f"{path}:{quant}" if quant and split_quant(path)[1] is None else path


def locate(path: str, where: str = "model.path") -> Source:
    """Return the source of the model `path`, after all checks that do not load it. Raises ModelError if one fails.

    With `:nf4` or `:int8` at its end, the linear layers of the (base) model are quantised when it is loaded.
    """
    name, quant = split_quant(path)
    source = _locate(name, where)
    if quant and source.quant not in (None, quant):
        what = f"this adapter was trained on a base model in {source.quant}"
        raise ModelError(what, where=f"{where} {path}", fix=f"remove :{quant}")
    return replace(source, quant=quant) if quant else source


def _locate(path: str, where: str) -> Source:
    folder = Path(path).expanduser()
    if folder.is_dir():
        _require_intact(folder)
        if (folder / ADAPTER_CONFIG).is_file():
            return _locate_adapter(folder)
        if not (folder / "config.json").is_file():
            final = folder / "final"
            if (final / "config.json").is_file() or (final / ADAPTER_CONFIG).is_file():
                return locate(str(final), where)
            fix = f"set {where} to a folder with config.json, *.safetensors and the tokenizer's files"
            if (folder / "manifest.json").is_file():
                what, fix = "the run in this folder is not finished", "rerun its command to finish it"
                raise ModelError(what, where=f"{where} {folder}", fix=fix)
            raise ModelError(
                "the folder has no config.json, so it is not a Hugging Face model folder",
                where=str(folder),
                fix=fix,
            )
        if not any(folder.glob("*.safetensors")):
            pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
            if not pickles:
                fix = "copy the weights of the model into the folder"
                raise ModelError("the folder has no *.safetensors weights", where=str(folder), fix=fix)
            what, fix = f"the weights are pickle files ({pickles[0]})", "convert the weights to safetensors"
            raise ModelError(what, where=str(folder), why=PICKLES_RUN_CODE, fix=fix)
        weight_files(str(folder))
        return Source(str(folder))
    name, _, revision = path.partition("@")
    looks_local = path.startswith((".", "/", "~")) or not _is_hub_id(name)
    if looks_local or folder.parent.is_dir():
        fix = f"choose an existing folder ({_similar_folders(folder)})"
        raise ModelError("no such folder", where=f"{where} {path}", fix=fix)
    if not _reachable(name, revision):
        raise ModelError(
            "the Hub is unreachable and the model is not in the cache",
            where=f"{where} {path}",
            fix=f"set {where} to a local folder ({_similar_folders(folder)})",
        )
    return Source(name, revision or None)


def _require_intact(folder: Path) -> None:
    """Raise ModelError if the final model of a finished run differs from the hashes in the manifest of the run."""
    hashes = _final_hashes(folder.absolute())
    stamps = tuple((name, *_stamp(folder / name)) for name in hashes)
    if _intact.get(folder.absolute()) == stamps:
        return
    changed = changed_files(folder, hashes)
    if changed:
        raise ModelError(
            f"the model was changed or damaged after its run had written it: {shortened(changed)}",
            where=str(folder),
            fix="rerun the command of the run to write it again; to use changed files, copy the folder out of the run",
        )
    _intact[folder.absolute()] = stamps


_intact: dict[Path, tuple[tuple[str, int, int], ...]] = {}  # size and time of the files that were checked before


def _stamp(path: Path) -> tuple[int, int]:
    with suppress(OSError):
        return path.stat().st_size, path.stat().st_mtime_ns
    return -1, -1


def _final_hashes(folder: Path) -> dict[str, str]:
    """Return the hashes of the files of a final model; empty for folders that are not in a finished run."""
    if folder.name in ("final", "base"):
        for name in ("manifest.json", ".manifest.json"):  # the second is a copy
            with suppress(OSError, ValueError):
                manifest = read_sealed(folder.parent / name)
                return dict(manifest.get(folder.name) or {}) if manifest.get("finished") else {}
    return {}


def _locate_adapter(folder: Path) -> Source:
    """Return the source of an adapter. Its base model must be a full model: a folder, or a Hub id."""
    config = read_config(folder)
    path, revision = str(config["base_model_name_or_path"]), config.get("revision")
    pinned = f"{path}@{revision}" if isinstance(revision, str) and revision and not Path(path).is_dir() else path
    base = locate(pinned, f"{folder / ADAPTER_CONFIG} base_model_name_or_path")
    if base.adapter:
        what = f"the base model of this adapter is itself an adapter: {base.adapter}"
        raise ModelError(what, where=str(folder), fix=f"merge the base model first: {MERGE_FIRST}")
    return Source(base.base, base.revision, str(folder), quant=recorded_quant(folder))


def recorded_quant(folder: Path) -> str | None:
    """Return the quantisation of the base model that an adapter was trained on; None for a base that was not."""
    path = folder / QUANT_RECORD
    if not path.is_file():
        return None
    quant = None
    with suppress(OSError, ValueError, TypeError, AttributeError):
        quant = json.loads(path.read_text(encoding="utf-8")).get("quant")
    if quant not in QUANTS:
        fix = 'write {"quant": "nf4"} or {"quant": "int8"} into it, as in the run\'s config (model.quant)'
        raise ModelError(f"{QUANT_RECORD} does not name a quantisation", where=str(folder), fix=fix)
    return str(quant)


def read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json. Raises ModelError if it has no base model or the weights are not in safetensors."""
    config: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):
        config = dict(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")))
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        fix = "set base_model_name_or_path to the folder or Hub id of the base model"
        raise ModelError(f"{ADAPTER_CONFIG} has no base model", where=str(folder), fix=fix)
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        what = f"the weights are pickle files ({pickles[0]})" if pickles else f"the folder has no {WEIGHTS}"
        raise ModelError(what, where=str(folder), why=PICKLES_RUN_CODE, fix="convert the weights to safetensors")
    return config


def _is_hub_id(name: str) -> bool:
    """Return whether the Hub can have a model of this name, such as OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def _reachable(name: str, revision: str) -> bool:
    """Return whether a Hub model is in the cache or the Hub responds. The Hub's client would retry for a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision or None), str):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    if any(key.lower() in ("http_proxy", "https_proxy", "all_proxy") for key in os.environ):
        return True  # a plain connection does not use the proxy, so it cannot tell
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=3).close()
    except OSError:
        return False
    return True


def _similar_folders(folder: Path) -> str:
    parent = folder.parent
    while not parent.is_dir():
        parent = parent.parent
    names = sorted(p.name for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    missing = folder.relative_to(parent).parts[0] if folder.is_relative_to(parent) else folder.name
    similar = difflib.get_close_matches(missing, names, n=3) or names[:8]
    return f"folders in {parent}: {', '.join(similar) or 'none'}"
