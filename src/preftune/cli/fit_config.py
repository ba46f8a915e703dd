"""Fit a config to its model, its data and this machine: the settings that differ from the template, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.cli.machine import FROZEN_BYTES, FULL_BYTES, GB, SHARE, Machine, parameters_in
from preftune.errors import PreftuneError
from preftune.model.locate import Source, locate

ROWS = 20  # that decide whether the data are messages
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@dataclass(frozen=True, slots=True)
class Reason:
    """Settings `section.key=value`, what they are about, and why they fit. Without settings, it is only a remark."""

    about: str
    why: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts of a local model: parameters, its context in tokens (None: unknown), and whether it has a chat template."""

    parameters: int
    context: int | None
    width: int
    has_template: bool


def reasons(
    method: str,
    raw: Mapping[str, Any],
    chosen: Mapping[str, str],
    machine: Machine,
    chat: bool | None = None,
) -> list[Reason]:
    """Return what to change in the template `raw` of `method`, whose model and data are in `chosen`.

    chosen  the keys that the user has set; they are never changed
    chat    True: train on messages; False: on text; None: whichever fits model and data
    """
    model = facts_of(chosen["model.path"]) if "model.path" in chosen else None
    result = [*_precision(machine, model, chosen)]
    if model:
        result += [*_memory(method, raw, chosen, machine, model), *_lengths(method, raw, chosen, model)]
    messages = holds_messages(chosen["data.train"]) if "data.train" in chosen else None
    result += _rendering(chosen, model, messages, chat)
    if method == "ppo" and "reward" in chosen and "value.path" not in chosen:
        path = chosen["reward"] if os.path.isdir(chosen["reward"]) else "null"
        result.append(Reason("value.path", "the value network starts from the reward model, if there is one",
                             (f"value.path={path}",)))  # fmt: skip
    return result


def _precision(machine: Machine, model: ModelFacts | None, chosen: Mapping[str, str]) -> list[Reason]:
    if chosen.get("model.dtype", "auto") != "auto":
        return []
    narrow = bool(model and not machine.gpu and machine.bf16 and model.width < 256)
    dtype = "bf16 with fp32 master weights" if machine.bf16 and not narrow else "fp32"
    why = f"a hidden size of {model.width} is too small to gain from bf16" if narrow and model else machine.why
    return [Reason("model.dtype", f"auto trains in {dtype} here, because {why}")]


def _memory(
    method: str, raw: Mapping[str, Any], chosen: Mapping[str, str], machine: Machine, model: ModelFacts
) -> list[Reason]:
    """Train an adapter if all weights do not fit in memory."""
    other_models = {"ppo": 2, "iterate": 1}.get(method, 0)  # a reference and a reward model; a reference
    full = model.parameters * (FULL_BYTES * (2 if method == "ppo" else 1) + FROZEN_BYTES * other_models)
    adapter = model.parameters * FROZEN_BYTES * (2 if method == "ppo" else 1)
    size = f"{model.parameters / GB:.2g} billion" if model.parameters > 1e8 else f"{model.parameters:,}"
    needs = f"all {size} weights need about {full / GB:.1f} GB, without activations"
    if raw.get("lora") is not None or any(key.partition(".")[0] == "lora" for key in chosen):
        return []
    if full < GB:
        return []
    if full <= SHARE * machine.free:
        return [Reason("lora", f"null, so all weights are trained: {needs}")]
    settings = ["lora={rank: 16, alpha: 32, targets: all-linear}"]
    rate = (raw.get("optim") or {}).get("lr")
    if rate is not None and "optim.lr" not in chosen:
        settings.append(f"optim.lr={10 * float(rate):.1e}")
    value = raw.get("value") or {}
    if method == "ppo" and not {key for key in chosen if key.startswith("value")} and value.get("kind") == "network":
        settings += ["value={kind: head}"]
    result = [Reason("lora", f"{needs}; an adapter needs {adapter / GB:.1f} GB, and ten times the learning rate",
                     tuple(settings))]  # fmt: skip
    if adapter > SHARE * machine.free / 2 and "model.gradient_checkpointing" not in chosen:
        why = "activations get little memory beside the weights"
        result.append(Reason("model.gradient_checkpointing", why, ("model.gradient_checkpointing=true",)))
    return result


def _lengths(method: str, raw: Mapping[str, Any], chosen: Mapping[str, str], model: ModelFacts) -> list[Reason]:
    """Limit lengths to the model's context."""
    if not model.context:
        return []
    key, new = {"ppo": ("data.max_prompt_length", "rollout"), "iterate": ("max_length", "sample")}.get(
        method, ("data.max_length", "")
    )
    default = {"data.max_prompt_length": 512}.get(key, 1024)
    section: Any = raw.get(key.partition(".")[0])
    current = (section or {}).get(key.partition(".")[2], default) if "." in key else raw.get(key, default)
    settings: list[str] = []
    room = model.context
    if new:
        tokens = int((raw.get(new) or {}).get("max_new_tokens", 64))
        if tokens > model.context // 2 and f"{new}.max_new_tokens" not in chosen:
            tokens = model.context // 2
            settings.append(f"{new}.max_new_tokens={tokens}")
        room -= tokens if method == "ppo" else 0
    if key not in chosen and current > room:
        settings.append(f"{key}={room}")
    why = f"the model's context has {model.context} tokens"
    return [Reason(settings[-1].partition("=")[0], why, tuple(settings))] if settings else []


def _rendering(
    chosen: Mapping[str, str], model: ModelFacts | None, messages: bool | None, chat: bool | None
) -> list[Reason]:
    """Choose between text and the chat template."""
    template = chosen.get("data.chat_template") or bool(model and model.has_template)
    wanted = chat if chat is not None else bool(messages or (template and messages is not None))
    result: list[Reason] = []
    if wanted and not messages and "data.as_chat" not in chosen and (chat or messages is not None):
        why = "the data are text, and become one message each" if messages is not None else "text becomes messages"
        result.append(Reason("data.as_chat", why, ("data.as_chat=true",)))
    if wanted and model and not template:
        why = "the model has no chat template, and this one needs no special tokens"
        result.append(Reason("data.chat_template", why, ("data.chat_template=dialogue",)))
    return result


def facts_of(path: str) -> ModelFacts | None:
    """Return the facts of a model folder or run, or None for a Hub id and a folder that is not there yet."""
    if not os.path.isdir(path):
        return None
    try:
        source = locate(path)
    except PreftuneError:  # an unfinished run; the training command reports it
        return None
    base = Path(source.base)
    config = _json(base / "config.json")
    nested = config.get("text_config")
    text: dict[str, Any] = nested if isinstance(nested, dict) else config
    context = next((text[key] for key in CONTEXT_KEYS if isinstance(text.get(key), int)), None)
    count = 0
    with suppress(OSError, ValueError, KeyError, TypeError):
        count = parameters_in(sorted(base.glob("*.safetensors")))
    width = text.get("hidden_size") or text.get("n_embd") or 0
    return ModelFacts(count, context, int(width), _has_template(source))


def _has_template(source: Source) -> bool:
    folders = [Path(folder) for folder in (source.adapter, source.base) if folder]
    return any(
        (folder / "chat_template.jinja").is_file() or bool(_json(folder / "tokenizer_config.json").get("chat_template"))
        for folder in folders
    )


def holds_messages(source: str) -> bool | None:
    """Return whether the first rows of local data hold messages; None if they cannot be read."""
    from preftune.formats.json_cells import messages_in
    from preftune.formats.values import is_dialogue
    from preftune.sources.read import read

    if not os.path.exists(source):
        return None
    try:
        rows = [row.value for row in islice(read(source), ROWS) if not row.fault]
    except PreftuneError:  # the training command reports it
        return None
    if all("text" in row for row in rows):  # texts without prompts stay texts
        return None
    cells = [value for row in rows for value in row.values()]
    cells = [messages_in(value) if isinstance(value, str) else value for value in cells]
    return any(map(is_dialogue, cells)) if rows else None


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}
