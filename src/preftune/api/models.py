"""Models in memory, where preftune reads models from folders: they are written to a temporary one for the call."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preftune.api.inputs import Held, folder_name, is_model
from preftune.errors import ConfigError, ModelError
from preftune.objects import StoredModel


@contextmanager
def models(held: Held, tokenizer: Any, where: str) -> Iterator[Callable[[Any, str], str]]:
    """Inside, a function that names a model of an argument: a folder or Hub id as it is, a model in memory by a name
    that `held` explains.

    `tokenizer` is that of the models in memory; left out, it is read from the folder that they were loaded from.
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
    """The error for a model in memory whose tokenizer cannot be told."""
    return ConfigError("a model in memory without its tokenizer", where=where, fix="give tokenizer=... too")


def _written(model: Any, tokenizer: Any, folder: Path, name: str, where: str) -> Path:
    """The folder of the model. It is named by its weights, so that the same call resumes where it has `out`."""
    from preftune.model.adapter import merge_adapter
    from preftune.model.load import load_tokenizer, locate, save_model, weights_hash

    if tokenizer is None:
        path = getattr(model, "name_or_path", "")
        if not path:
            raise no_tokenizer(where)
        tokenizer = load_tokenizer(locate(path, where))
    if hasattr(model, "merge_and_unload"):  # its base may differ from the one on disk: the adapter is not enough
        model = merge_adapter(copy.deepcopy(model).float(), where)
    elif hasattr(model, "peft_config"):
        raise ModelError(
            "a model with an adapter in its layers",
            where=where,
            why="its weights cannot be saved without the adapter's",
            fix="give the PeftModel around it, the adapter's folder, or the result of the run",
        )
    target = folder / f"{name}-{weights_hash(model)[:16]}"
    if not target.exists():
        save_model(model, tokenizer, target)
    return target
