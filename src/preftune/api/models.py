"""Models in memory as arguments: each is saved to a temporary folder for the duration of the call."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preftune.api.inputs import Held, folder_name, is_model
from preftune.errors import ConfigError, ModelError
from preftune.in_memory import StoredModel


@contextmanager
def models(held: Held, tokenizer: Any, where: str) -> Iterator[Callable[[Any, str], str]]:
    """Yield a function that returns the name of a model: a folder or Hub id unchanged, a model in memory as its name in
    `held`.

    `tokenizer` belongs to the models in memory. By default, it is read from the folder that they were loaded from.
    """
    with tempfile.TemporaryDirectory(prefix="preftune-") as folder:

        def name_of(model: Any, argument: str) -> str:
            if not is_model(model):
                return folder_name(model, f"{where}: {argument}")
            stored = StoredModel(_written(model, tokenizer, Path(folder), argument, f"{where}: {argument}"))
            held[stored.name] = stored
            return stored.name

        yield name_of


def no_tokenizer(where: str) -> ConfigError:
    """Return the error for a model in memory without a tokenizer."""
    return ConfigError("the tokenizer of a model in memory is missing", where=where, fix="pass tokenizer=...")


def _written(model: Any, tokenizer: Any, folder: Path, name: str, where: str) -> Path:
    """Save the model and return its folder, named after its weights so that the same call with `out` resumes."""
    from preftune.model.adapter import merge_adapter
    from preftune.model.load import load_tokenizer, locate, save_model, weights_hash

    if tokenizer is None:
        path = getattr(model, "name_or_path", "")
        if not path:
            raise no_tokenizer(where)
        tokenizer = load_tokenizer(locate(path, where))
    if hasattr(model, "merge_and_unload"):  # saving the adapter is not enough: its base may differ from the one on disk
        model = merge_adapter(copy.deepcopy(model).float(), where)
    elif hasattr(model, "peft_config"):
        why = "its weights cannot be saved without those of the adapter"
        fix = "pass the PeftModel that wraps it, the folder of the adapter, or the result of the run"
        raise ModelError("the model has an adapter in its layers", where=where, why=why, fix=fix)
    target = folder / f"{name}-{weights_hash(model)[:16]}"
    if not target.exists():
        save_model(model, tokenizer, target)
    return target
