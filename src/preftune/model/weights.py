"""Load weights from safetensors files into a model, and read the precision in which they are stored.

A tensor that the files lack, or that has a different shape in them, is an error: it would get random values.
Tensors in the files that the model does not use are reported in one line.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from preftune.errors import ModelError
from preftune.model.weight_files import shortened, weight_files

COMPARED_TENSORS, COMPARED_ROWS = 8, 1024  # of which `changed_share` reads values
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTISED = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit", "gptq", "awq", "aqlm", "hqq", "quanto", "eetq")
Shapes = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class TensorMismatch:
    """Tensors that differ between files and model. `reshaped` maps names to the shapes in the file and the model."""

    missing: tuple[str, ...]
    unused: tuple[str, ...]
    reshaped: Mapping[str, Shapes]

    def without(self, names: Collection[str]) -> TensorMismatch:
        """Return a copy without the tensors in `names`."""
        return TensorMismatch(
            tuple(name for name in self.missing if name not in names),
            tuple(name for name in self.unused if name not in names),
            {name: shapes for name, shapes in self.reshaped.items() if name not in names},
        )


def read_model(auto: Any, what: str, base: str, revision: str | None, dtype: torch.dtype, **options: Any) -> Any:
    """Return the model that `auto` (a transformers class) loads from `base` in `dtype`, and a `TensorMismatch`.

    Raises ModelError if a file cannot be read. The caller decides about missing tensors, see `require_complete`.
    """
    silence_transformers()
    weight_files(base, revision)
    _require_not_quantised(base, revision)
    with _load_report() as report:
        try:
            model, loading_info = auto.from_pretrained(
                base,
                revision=revision,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # `require_complete` reports them by name
                **options,
            )
        except Exception as error:
            parts = sorted(set(re.findall(r"^(\S+)\s*\|\s*CONVERSION", "\n".join(report), re.MULTILINE)))
            if not parts:
                raise load_error(what, base, error) from error
            raise ModelError(
                f"{shortened(parts)} cannot be assembled from the tensors in the files",
                where=base,
                why="one of the tensors that transformers stacks to make it is missing or has the wrong shape",
                fix="save the model again with all its weights",
            ) from error
    reshaped = {name: (tuple(stored), tuple(needed)) for name, stored, needed in loading_info["mismatched_keys"]}
    missing = set(loading_info["missing_keys"]) - set(reshaped)
    resolve_ties(model, base)
    return model, TensorMismatch(tuple(sorted(missing)), tuple(sorted(loading_info["unexpected_keys"])), reshaped)


def _require_not_quantised(base: str, revision: str | None) -> None:
    """Raise ModelError for a model whose files hold quantised weights, which need other programs to be read."""
    import transformers

    with suppress(OSError):  # from_pretrained reports it
        raw, _ = transformers.PretrainedConfig.get_config_dict(base, revision=revision)
        if not isinstance(raw, dict):
            raise ModelError("config.json is not a JSON object", where=base, fix="download the model again")
        quantisation = raw.get("quantization_config")
        method = str(quantisation.get("quant_method", "")) if isinstance(quantisation, dict) else ""
        if method in QUANTISED:
            raise ModelError(
                f"the weights are stored quantised ({method})",
                where=base,
                why="preftune reads weights as they were before, and quantises them itself",
                fix="use the original model; with lora, model.quant=nf4 or int8 stores it in 4 or 8 bits",
            )


def require_complete(model: Any, mismatch: TensorMismatch, where: str) -> None:
    """Raise ModelError if a tensor is missing or has the wrong shape. Print a note about tensors that are not used."""
    if not mismatch.missing and not mismatch.reshaped:
        if mismatch.unused:
            note(f"note: {where}: {_unused(mismatch.unused, 'weight files')}")
        return
    total = len(model.state_dict())
    what = []
    if mismatch.missing:
        missing, are = mismatch.missing, "is" if len(mismatch.missing) == 1 else "are"
        what.append(f"{len(missing)} of {total} tensors of the model {are} missing: {shortened(missing)}")
    if mismatch.reshaped:
        shapes = [
            f"{name} ({_shape(stored)} in the file, {_shape(needed)} in the model)"
            for name, (stored, needed) in sorted(mismatch.reshaped.items())
        ]
        have = "has" if len(shapes) == 1 else "have"
        what.append(f"{len(shapes)} of {total} tensors {have} the wrong shape: {shortened(shapes)}")
    why = "these tensors would get random values"
    if mismatch.unused:
        why += f". {_unused(mismatch.unused, 'files')}"
        why += _similar_names(mismatch.missing, mismatch.unused)
    raise ModelError("; ".join(what), where=where, why=why, fix=_fix(model, mismatch))


def _fix(model: Any, mismatch: TensorMismatch) -> str:
    head = model.get_output_embeddings()
    own = {name for name, p in model.named_parameters() if head is not None and any(p is q for q in head.parameters())}
    if mismatch.missing and set(mismatch.missing) <= own and not mismatch.reshaped:
        return "save the model with its head, or set tie_word_embeddings: true in config.json if it is the embedding"
    if mismatch.reshaped and not mismatch.missing:
        return "correct config.json so that it describes these weights"
    return "save the model again with all its weights under their original names, or correct config.json"


def _similar_names(missing: Sequence[str], unused: Sequence[str]) -> str:
    """Return a hint about unused tensors whose names are similar to those of missing tensors."""
    pairs = []
    for name in missing:
        close = difflib.get_close_matches(name, unused, n=1, cutoff=0.6)
        if close:
            pairs.append(f"{close[0]} for {name}")
    return f". Perhaps renamed: {shortened(pairs, 2)}" if pairs else ""


def resolve_ties(model: Any, where: str) -> None:
    """Set tie_word_embeddings to false if input and output embedding differ: other programs rely on this setting."""
    config = model.config.get_text_config()
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if not getattr(config, "tie_word_embeddings", False) or last is None or first.weight is last.weight:
        return
    config.tie_word_embeddings = model.config.tie_word_embeddings = False
    note(
        f"note: {where}: config.json has tie_word_embeddings: true, but the input and output embedding have "
        "different values; both are used"
    )


def stored_dtypes(base: str, revision: str | None = None) -> dict[str, torch.dtype]:
    """Return the dtype of every floating-point tensor in the files, by name; empty if there are no files."""
    dtypes = {}
    for path in weight_files(base, revision):
        for name, (kind, _) in read_header(path).items():
            if kind in FLOATS:
                dtypes[name] = FLOATS[kind]
    return dtypes


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype (by its safetensors name) and the shape of every tensor in a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
            return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        fix = "copy or download the file again"
        raise ModelError(f"{path.name} cannot be read: {error}", where=str(path.parent), fix=fix) from error


def changed_share(before: Path, after: Path) -> tuple[float, str] | None:
    """Return the share of weights that differ between two model folders, from a sample, and the dtype of `after`.

    None if `after` has no tensor of 16 bits that `before` has in the same dtype: others are not rounded.
    """
    from safetensors import safe_open

    files = [
        {name: (path, kind) for path in folder.glob("*.safetensors") for name, kind in read_header(path).items()}
        for folder in (before, after)
    ]
    kinds = [{name: kind for name, (_, kind) in tensors.items()} for tensors in files]
    names = [name for name, kind in kinds[1].items() if kind[0] in ("BF16", "F16") and kinds[0].get(name) == kind]
    changed = compared = 0
    for name in names[:: 1 + len(names) // COMPARED_TENSORS]:
        values = []
        for tensors in files:
            with safe_open(tensors[name][0], framework="pt") as file:
                values.append(file.get_slice(name)[:COMPARED_ROWS] if kinds[1][name][1] else file.get_tensor(name))
        changed += int((values[0] != values[1]).sum())
        compared += values[0].numel()
    return (changed / compared, kinds[1][names[0]][0].lower()) if compared else None


def require_finite(model: Any, where: str) -> None:
    """Raise ModelError if a weight is NaN or infinite: every loss would be, and no row would be at fault."""
    for name, parameter in model.named_parameters():
        # the sum is one pass without a copy; it may overflow, so that only the exact check decides
        if not torch.isfinite(parameter.detach().sum(dtype=torch.float32)) and not torch.isfinite(parameter).all():
            bad = int((~torch.isfinite(parameter)).sum())
            raise ModelError(
                f"{bad:,} of {parameter.numel():,} weights in {name} are NaN or infinite",
                where=where,
                why="a training run before diverged, or the file is damaged",
                fix="download the model again, or use an earlier checkpoint",
            )


def load_error(what: str, where: str, error: BaseException) -> ModelError:
    """Convert the exception of a library that could not load `what` to a ModelError."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) or type(error).__name__
    fix = ""
    if not Path(where).is_dir():
        fix = "use a local folder, or a Hub id that this machine can download"
    elif "trust_remote_code" in str(error) or "custom code" in str(error):
        text = "the model needs Python code from its folder (auto_map in config.json)"
        fix = "use a model without custom code; preftune does not run code from model folders"
    elif "does not recognize this architecture" in str(error):
        text, fix = lines[0], "correct model_type in config.json, or update transformers"
    return ModelError(f"cannot load the {what}: {text}", where=where, fix=fix)


def silence_transformers() -> None:
    """Disable the progress bar and the warnings of transformers, which would disturb the run's display."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


@contextmanager
def _load_report() -> Iterator[list[str]]:
    """Collect what transformers logs inside the block: its errors refer to a table in the log."""
    lines: list[str] = []
    logger = logging.getLogger("transformers.modeling_utils")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@lru_cache(maxsize=256)
def note(text: str) -> None:
    """Log one line for the user, once per process, to the logger "preftune" (by default to stderr)."""
    logging.getLogger("preftune").warning(text)


def _unused(names: Sequence[str], where: str) -> str:
    number = f"1 tensor in the {where} is" if len(names) == 1 else f"{len(names)} tensors in the {where} are"
    return f"{number} not used: {shortened(names)}"


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
