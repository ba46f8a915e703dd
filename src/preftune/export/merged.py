"""A full model folder: an adapter is merged in fp32, and the result is checked by its logits.

The merge is checked on a few texts, in fp32 arithmetic:

1. After merging in fp32, logits may differ from those of the base model with its adapter only because sums are computed
   in a different order: by 1e-5 of the largest logit.
2. The saved folder is loaded again. Its logits may differ as little from those of the merged weights, rounded in memory
   to the dtypes of the folder.

Rounding is no fault, but it can take away what an adapter learned: bf16 loses a change of a weight by less than 0.2 %.
So with dtype auto, a model is saved in fp32 if rounding changes logits by more than half of what the adapter changes.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preftune.chat.bounded import bounded
from preftune.errors import ConfigError, NumericError, writing
from preftune.export.subject import Exported
from preftune.files import write_json
from preftune.lifecycle.open_policy import open_policy
from preftune.model import load, weights
from preftune.model.adapter import load_adapter, merge_adapter
from preftune.model.precision import cast_to, exact_state, save_dtype_of
from preftune.model.quantised import dequantise, quantise
from preftune.report.card import CARD, FIGURES, run_files

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEXTS = (
    "The capital of France is",
    "Once upon a time, there was a small village near the sea. The people who lived there",
    "def add(a, b):\n    return a + b\n\n\ndef multiply(a, b):\n",
    "Question: How do I boil an egg?\nAnswer:",
)
MOST_LOST = 0.5  # of what the adapter changes, by rounding; beyond that, dtype auto saves in fp32
FP32_NOISE = 1e-5  # of the largest logit: fp32 sums in a different order
GENERATION = "generation_config.json"


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """The largest differences of logits.

    merge      between the adapter on its base model and the weights merged in fp32
    saved      between the saved folder, loaded again, and the merged weights after rounding
    limit      what is allowed for both
    rounding   between the adapter on its base model and the merged weights after rounding
    effect     between the base model with and without the adapter
    dtype      in which the merged weights are saved
    """

    merge: float
    saved: float
    limit: float
    rounding: float
    effect: float
    dtype: str

    @property
    def passed(self) -> bool:
        """Whether both differences are within the limit. NaN is not."""
        return self.merge <= self.limit and self.saved <= self.limit

    @property
    def loses_adapter(self) -> bool:
        """Whether rounding takes away most of what the adapter learned."""
        return self.rounding > MOST_LOST * self.effect

    def text(self) -> str:
        """Return the result as a sentence."""
        return (
            f"merge checked against the adapter on its base model: logits differ by up to {self.merge:.2g} in fp32 and "
            f"{self.saved:.2g} after loading (allowed: {self.limit:.2g}); saving in {self.dtype} changes them by up to "
            f"{self.rounding:.2g}, the adapter by up to {self.effect:.2g}"
        )


def write_merged(model: Exported, dtype: str, part: Path) -> MergeCheck | None:
    """Write a full model folder to `part`. Returns the check of the merge; None if there was no adapter to merge.

    `dtype`: fp32, bf16, fp16; auto: as the base model is saved, or fp32 if that would lose what the adapter learned.
    Raises NumericError if the merge fails its check.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}", where="--dtype", fix=f"use auto, {', '.join(DTYPES)}")
    weights.silence_transformers()
    if model.kind in ("model", "reward") and dtype == "auto":
        copy_files(model.folder, part)
    elif model.kind == "reward":
        what, fix = "the dtype of a reward model cannot be changed", "leave the option out"
        raise ConfigError(what, where="--dtype", fix=fix)
    elif model.source is not None and model.source.adapter:
        check = _write_with_adapter(model.source, dtype, part)
        if dtype != "auto" or not check.loses_adapter or check.dtype == "fp32":
            return check
        weights.note(
            f"note: {check.dtype} is too coarse for what the adapter learned: rounding would change logits by up to "
            f"{check.rounding:.2g}, the adapter changes them by up to {check.effect:.2g}. The model is saved in fp32"
        )
        shutil.rmtree(part)
        return _write_with_adapter(model.source, "fp32", part)
    else:
        _write_loaded(model, dtype, part)
    return None


def copy_files(folder: Path, part: Path) -> None:
    """Copy a folder without its model card and pictures, which every export writes again."""
    with writing(part):
        shutil.copytree(folder, part, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD, FIGURES, "*.part*"))


def _write_loaded(model: Exported, dtype: str, part: Path) -> None:
    """Write the model of a checkpoint, or a full model in a different dtype."""
    opened = open_policy(str(model.folder), "preftune export", torch.float32, torch.device("cpu"))
    data = run_files(model.run)[0].get("data") or {}
    # the base model of a checkpoint lacks the chat template of the run
    template = data.get("chat_template") if model.kind == "checkpoint" else None
    cast = _cast(opened.model, load.source_dtypes(opened.source), dtype)
    _save(cast, load.load_tokenizer(opened.source, template), opened.source, part)


def _write_with_adapter(source: load.Source, dtype: str, part: Path) -> MergeCheck:
    adapter = str(source.adapter)
    tokenizer = load.load_tokenizer(source)
    base = load.load_model(load.Source(source.base, source.revision), torch.float32)
    if source.quant:
        base = quantise(base, source.quant)
        weights.note(
            f"note: {adapter} was trained on a base model in {source.quant}. The merged weights are the dequantised "
            "ones with the adapter, not those of the original base model"
        )
    texts = token_ids(tokenizer, base)
    before = logits(base, texts)
    tuned = load_adapter(base, adapter).eval()
    with_adapter = logits(tuned, texts)
    merged = merge_adapter(dequantise(tuned, torch.float32), adapter).eval()
    plain = logits(merged, texts)
    dtypes = _dtypes(merged, load.source_dtypes(source), dtype)
    coarsest = max(dtypes.values(), key=_eps)
    rounded = logits(round_to(merged, dtypes), texts)
    _save(cast_to(merged, dtypes, coarsest, {}), tokenizer, source, part)
    del base, tuned, merged
    gc.collect()
    check = MergeCheck(
        merge=largest(with_adapter, plain),
        saved=largest(rounded, logits(load.load_model(load.Source(str(part)), torch.float32), texts)),
        limit=FP32_NOISE * max(float(value.abs().max()) for value in with_adapter),
        rounding=largest(with_adapter, rounded),
        effect=largest(before, with_adapter),
        dtype=next((name for name, value in DTYPES.items() if value == coarsest), str(coarsest).removeprefix("torch.")),
    )
    require_passed(check, adapter)
    return check


def require_passed(check: MergeCheck, adapter: str) -> None:
    """Raise NumericError if a difference is larger than its limit, or not a number."""
    if not check.passed:
        raise NumericError(
            f"the exported model differs from the model that was trained. {check.text()}",
            where=adapter,
            why="it would write different text",
            fix="use --to adapter, and report this with the output of preftune doctor",
        )


def token_ids(tokenizer: Any, model: Any) -> list[Tensor]:
    """Return the token ids of the texts of the check, and of a chat if the tokenizer has a template."""
    texts = list(TEXTS)
    with suppress(Exception):  # no template, or one that refuses this chat
        chat = [{"role": "user", "content": "How do I boil an egg?"}]
        apply = partial(tokenizer.apply_chat_template, chat, tokenize=False, add_generation_prompt=True)
        texts.append(bounded(apply, tokenizer.name_or_path))
    rows, longest = model.get_input_embeddings().weight.shape[0], load.max_positions(model.config)
    ids = [[i for i in tokenizer(text).input_ids if i < rows][:longest] for text in texts]
    return [torch.tensor([row]) for row in ids if row]


@torch.no_grad()
def logits(model: Any, texts: Sequence[Tensor]) -> list[Tensor]:
    """Return the logits of every position of each text, in fp32."""
    return [model(ids, use_cache=False).logits[0].float() for ids in texts]


def largest(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """Return the largest difference of logits. Rows of added tokens, which only one model has, are left out."""
    widths = [min(a.shape[-1], b.shape[-1]) for a, b in zip(one, two, strict=True)]
    differences = [
        float((a[:, :width] - b[:, :width]).abs().max()) for a, b, width in zip(one, two, widths, strict=True)
    ]
    return max(differences)


@torch.no_grad()
def round_to(model: Any, dtypes: Mapping[str, torch.dtype]) -> Any:
    """Round each tensor of a model in fp32 to its dtype, in place."""
    for name, value in exact_state(model).items():
        if value.is_floating_point():
            value.copy_(value.to(dtypes[name]))
    return model


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _dtypes(model: Any, stored: Mapping[str, torch.dtype], dtype: str) -> dict[str, torch.dtype]:
    """Return the dtype in which each tensor is saved."""
    default = save_dtype_of(model, stored) if dtype == "auto" else DTYPES[dtype]
    own = stored if dtype == "auto" else {}
    return {name: own.get(name, default) for name in exact_state(model)}


def _cast(model: Any, stored: Mapping[str, torch.dtype], dtype: str) -> Any:
    dtypes = _dtypes(model, stored, dtype)
    return cast_to(model, dtypes, max(dtypes.values(), key=_eps), {})


def _save(model: Any, tokenizer: Any, source: load.Source, part: Path) -> None:
    """Save the model with its tokenizer, chat template, chat settings and the generation config of its base."""
    record = load.chat_record(source)
    model.config.use_cache = True
    load.save_model(model, tokenizer, part)
    for folder in (source.base, source.adapter):
        path = Path(folder or "") / GENERATION
        if folder and path.is_file():
            with writing(part):
                shutil.copyfile(path, part / GENERATION)
    if record:
        write_json(part / load.CHAT_RECORD, record)
