"""Weights: from safetensors files into a model, complete or not at all; in which precision they are stored.

A tensor of the model that is not in the files, or has another shape there, would get random values. So it is an error.
A tensor of the files that the model does not use is reported in one line.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from preftune.errors import ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Shapes = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class TensorMismatch:
    """What the files and the model do not share: tensor names, and for `reshaped` the shapes in file and model."""

    missing: tuple[str, ...]
    unused: tuple[str, ...]
    reshaped: Mapping[str, Shapes]

    def without(self, names: Collection[str]) -> TensorMismatch:
        """The same without the tensors that are called `names`."""
        return TensorMismatch(
            tuple(name for name in self.missing if name not in names),
            tuple(name for name in self.unused if name not in names),
            {name: shapes for name, shapes in self.reshaped.items() if name not in names},
        )


def read_model(auto: Any, what: str, base: str, revision: str | None, dtype: torch.dtype, **options: Any) -> Any:
    """The model that `auto` (a transformers class) reads from `base` in `dtype`, and an `Unread`.

    Raises ModelError for files that cannot be read. Tensors that are missing are for the caller to judge.
    """
    silence_transformers()
    weight_files(base, revision)
    with _load_report() as report:
        try:
            model, found = auto.from_pretrained(
                base,
                revision=revision,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, with their names
                **options,
            )
        except Exception as error:
            parts = sorted(set(re.findall(r"^(\S+)\s*\|\s*CONVERSION", "\n".join(report), re.MULTILINE)))
            if not parts:
                raise load_error(what, base, error) from error
            raise ModelError(
                f"the parts of {shortened(parts)} do not fit together",
                where=base,
                why="a tensor that is one part of it is missing or has another shape",
                fix="save the model again with all its weights",
            ) from error
    reshaped = {name: (tuple(stored), tuple(needed)) for name, stored, needed in found["mismatched_keys"]}
    missing = set(found["missing_keys"]) - set(reshaped)
    resolve_ties(model, base)
    return model, TensorMismatch(tuple(sorted(missing)), tuple(sorted(found["unexpected_keys"])), reshaped)


def require_complete(model: Any, unread: TensorMismatch, where: str) -> None:
    """Raises ModelError if a tensor is missing or has another shape. Reports the tensors that are not used."""
    if not unread.missing and not unread.reshaped:
        if unread.unused:
            note(f"note: {where}: {_not_used(unread.unused, 'weight files')}")
        return
    total = len(model.state_dict())
    what = []
    if unread.missing:
        are = "is" if len(unread.missing) == 1 else "are"
        what.append(f"{len(unread.missing)} of {total} tensors of the model {are} missing: {shortened(unread.missing)}")
    if unread.reshaped:
        shapes = [
            f"{name} ({_shape(stored)} in the file, {_shape(needed)} in the model)"
            for name, (stored, needed) in sorted(unread.reshaped.items())
        ]
        have = "has" if len(shapes) == 1 else "have"
        what.append(f"{len(shapes)} of {total} tensors {have} another shape: {shortened(shapes)}")
    why = "They would get random values."
    if unread.unused:
        why += f" {_not_used(unread.unused, 'files')}."
        why += _near(unread.missing, unread.unused)
    raise ModelError("; ".join(what), where=where, why=why, fix=_fix(model, unread))


def _fix(model: Any, unread: TensorMismatch) -> str:
    head = model.get_output_embeddings()
    own = {name for name, p in model.named_parameters() if head is not None and any(p is q for q in head.parameters())}
    if unread.missing and set(unread.missing) <= own and not unread.reshaped:
        return "save the model with its head, or set tie_word_embeddings to true in config.json if it is the embedding"
    if unread.reshaped and not unread.missing:
        return "correct config.json so that it describes these weights"
    return "save the model again with all its weights under their names, or correct config.json"


def _near(missing: Sequence[str], unused: Sequence[str]) -> str:
    """Which unused tensors look like missing ones."""
    pairs = []
    for name in missing:
        close = difflib.get_close_matches(name, unused, n=1, cutoff=0.6)
        if close:
            pairs.append(f"{close[0]} for {name}")
    return f" Perhaps renamed: {shortened(pairs, 2)}." if pairs else ""


def resolve_ties(model: Any, where: str) -> None:
    """Let the model's config tell whether input and output embedding are one tensor, as other programs believe it."""
    config = model.config.get_text_config()
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if not getattr(config, "tie_word_embeddings", False) or last is None or first.weight is last.weight:
        return
    config.tie_word_embeddings = model.config.tie_word_embeddings = False
    note(
        f"note: {where}: config.json says that input and output embedding are one tensor, but they have different "
        "values; both are used"
    )


def weight_files(base: str, revision: str | None = None) -> list[Path]:
    """The safetensors files that a model is read from; empty for a Hub model that cannot be had.

    Raises ModelError for a folder without weights, for a missing shard, and for an index that names a file outside.
    """
    folder = Path(base)
    if not folder.is_dir():
        return _files_of_the_hub(base, revision)
    named = _config(folder).get("transformers_weights")
    if named is not None and named not in (SINGLE, INDEX):
        raise ModelError(
            f"config.json names the weight file {named!r}", where=base, fix=f"name it {SINGLE}, without the setting"
        )
    if (folder / SINGLE).is_file() and named != INDEX:
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        there = sorted(path.name for path in folder.glob("*.safetensors"))
        raise ModelError(
            f"neither {SINGLE} nor {INDEX}",
            where=base,
            why=f"found: {shortened(there)}" if there else "",
            fix="rename it",
        )
    names = shards_of(folder / INDEX)
    for name in names:
        _require_inside(folder, name)
    lost = [name for name in names if not (folder / name).is_file()]
    if lost:
        raise ModelError(
            f"{len(lost)} of {len(names)} weight files are missing: {shortened(lost)}",
            where=base,
            why=f"{INDEX} names them",
            fix="copy them into the folder",
        )
    return [folder / name for name in names]


def _files_of_the_hub(base: str, revision: str | None) -> list[Path]:
    from transformers.utils import cached_file

    quietly = dict.fromkeys(("missing_entries", "gated_repo", "connection_errors"), False)
    options: dict[str, Any] = {f"_raise_exceptions_for_{name}": value for name, value in quietly.items()}
    try:
        for name in (SINGLE, INDEX):
            path = cached_file(base, name, revision=revision, **options)
            if path and name == SINGLE:
                return [Path(path)]
            if path:
                names = shards_of(Path(path))
                found = [cached_file(base, shard, revision=revision, **options) for shard in names]
                return [Path(shard) for shard in found if shard]
    except OSError:
        pass  # from_pretrained says what is wrong
    return []


def shards_of(index: Path) -> list[str]:
    """The files that a shard index names. Raises ModelError for a name that leads outside the index's folder."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        plain = all(isinstance(name, str) for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"not a shard index: {type(error).__name__}: {error}", where=str(index)) from error
    for name in names if plain else []:
        parts = re.split(r"[/\\]", name)
        if Path(name).is_absolute() or ".." in parts or ":" in parts[0] or parts[0] in ("", "~"):
            raise _outside(index, name)
    wrong = [str(name) for name in names if not plain or not name.endswith(".safetensors")]
    if wrong or not names:
        what = f"it names files that are not safetensors: {shortened(wrong)}" if wrong else "it names no files"
        raise ModelError(what, where=str(index), fix="convert the weights to safetensors: pickles can run code")
    return names


def _require_inside(folder: Path, name: str) -> None:
    """Raises ModelError for a shard that a link puts outside its folder. The Hub's cache keeps its files in `blobs`."""
    real, home = (folder / name).resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs"
    if not real.is_relative_to(home) and not (home.parent.name == "snapshots" and real.is_relative_to(blobs)):
        raise _outside(folder / INDEX, name)


def _outside(index: Path, name: str) -> ModelError:
    return ModelError(
        f"it names a file outside its folder: {name}",
        where=str(index),
        why="Only the files of a model's own folder are read.",
        fix="copy the file into the folder and name it without a path",
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def stored_dtypes(base: str, revision: str | None = None) -> dict[str, torch.dtype]:
    """The precision of every floating-point tensor in the files, by name; empty where the files cannot be had."""
    found = {}
    for path in weight_files(base, revision):
        for name, (kind, _) in read_header(path).items():
            if kind in FLOATS:
                found[name] = FLOATS[kind]
    return found


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """safetensors' name of the precision, and the shape, of every tensor in a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
            return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path.name} cannot be read: {error}", where=str(path.parent), fix="copy or download the file again"
        ) from error


def load_error(what: str, where: str, error: Exception) -> ModelError:
    """What a library said when it could not load something, as our error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) or type(error).__name__
    fix = ""
    if not Path(where).is_dir():
        fix = "give a local folder, or a Hub id that this machine can reach"
    elif "trust_remote_code" in str(error) or "custom code" in str(error):
        fix = "models that bring their own code are not run"
    return ModelError(f"cannot load the {what}: {text}", where=where, fix=fix)


def silence_transformers() -> None:
    """transformers draws a bar while it loads weights; the run has its own display."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


@contextmanager
def _load_report() -> Iterator[list[str]]:
    """What transformers logs while open: the table that its errors refer to."""
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
    """One line for the user, once in a process: on stderr, or wherever logging of "preftune" is sent."""
    logging.getLogger("preftune").warning(text)


def _not_used(names: Sequence[str], where: str) -> str:
    number = f"1 tensor of the {where} is" if len(names) == 1 else f"{len(names)} tensors of the {where} are"
    return f"{number} not used: {shortened(names)}"


def shortened(names: Sequence[str], limit: int = 4) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
