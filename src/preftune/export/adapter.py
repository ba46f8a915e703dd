"""An adapter folder that peft, transformers and vLLM load."""

from __future__ import annotations

import shutil
from pathlib import Path
from shlex import quote
from typing import Any

from preftune.errors import ConfigError, ModelError, writing
from preftune.export.merged import copy_files
from preftune.export.subject import Exported
from preftune.files import write_json
from preftune.model import load
from preftune.model.locate import ADAPTER_CONFIG, read_config
from preftune.model.weights import note

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank accepts (vllm/config/lora.py)
BASE = "base"


def write_adapter(model: Exported, part: Path, out: Path) -> None:
    """Write an adapter folder to `part`, which will be renamed to `out`.

    Its config names the base model by its Hub id, or by an absolute path, so that it loads from every folder. A base
    model that exists only in the run folder is copied into the adapter folder. Raises ConfigError if the model has no
    adapter.
    """
    if model.source is None or not model.source.adapter:
        what = "this is a checkpoint" if model.kind == "checkpoint" else "this model has no adapter"
        fix = (
            "use --to merged" if model.kind != "checkpoint" else "use --to merged, or the run folder of a finished run"
        )
        raise ConfigError(what, where="--to adapter", fix=fix)
    copy_files(Path(model.source.adapter), part)
    config = read_config(part)
    base = Path(model.source.base).expanduser()
    if model.run is not None and base.resolve() == (model.run / BASE).resolve():
        with writing(part):
            shutil.copytree(base, part / BASE)
        config["base_model_name_or_path"] = str((out / BASE).resolve())
    elif base.is_dir():
        config["base_model_name_or_path"] = str(base.resolve())
    else:
        config["base_model_name_or_path"] = model.source.base
        config["revision"] = model.source.revision
    write_json(part / ADAPTER_CONFIG, config)
    if model.source.quant:
        note(
            f"note: this adapter was trained on a base model in {model.source.quant}, and programs that load the base "
            "unquantised get slightly different outputs; --to merged writes the weights that were trained"
        )
    if not (part / "tokenizer_config.json").is_file():
        tokenizer = load.load_tokenizer(model.source)
        with writing(part):
            tokenizer.save_pretrained(part)


def vllm_command(folder: Path, name: str) -> str:
    """Return the command that serves an adapter folder with vLLM. Raises ModelError for what vLLM does not support."""
    config = read_config(folder)
    problems = [text for text, is_set in _unsupported_by_vllm(config) if is_set]
    if problems:
        raise ModelError(
            f"vLLM cannot serve this adapter: {', '.join(problems)}",
            where=str(folder),
            fix="merge it into its base model: add --merge",
        )
    rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    limit = next((value for value in VLLM_RANKS if value >= rank), None)
    if limit is None:
        what = f"vLLM serves adapters up to rank {VLLM_RANKS[-1]}, and this one has rank {rank}"
        raise ModelError(what, where=str(folder), fix="merge it into its base model: add --merge")
    words = ["vllm serve", quote(str(config["base_model_name_or_path"]))]
    if config.get("revision"):
        words.append(f"--revision {quote(str(config['revision']))}")
    words.append(f"--enable-lora --max-lora-rank {limit} --lora-modules {name}={quote(str(folder.resolve()))}")
    words.append(f"--tokenizer {quote(str(folder.resolve()))}")
    return " ".join(words)


def _unsupported_by_vllm(config: dict[str, Any]) -> list[tuple[str, bool]]:
    """Return the settings that vLLM refuses (vllm/lora/peft_helper.py), and whether the adapter has them."""
    return [
        (f"its type is {config.get('peft_type')}", config.get("peft_type") != "LORA"),
        ("it has modules_to_save", bool(config.get("modules_to_save"))),
        ("it uses DoRA", bool(config.get("use_dora"))),
        ("it trains biases", config.get("bias", "none") != "none"),
        ("it trains single token embeddings", bool(config.get("trainable_token_indices"))),
        ("it has target_parameters", bool(config.get("target_parameters"))),
    ]
