"""What all methods prepare in the same way: data, policy, reference, run folder, final model."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from preftune.chat.open import as_chat
from preftune.chat.render import Renderer
from preftune.chat.template import ChatSettings
from preftune.config.sampling import PromptConfig
from preftune.config.schema import DataConfig, ModelConfig, RunConfig, TunedConfig
from preftune.data.groups import (
    Limits,
    hold_out,
    read_groups,
    refuse_overlap,
    require_vocabulary,
    tokenize,
)
from preftune.data.layout import Budget
from preftune.data.prompts import Prompt, encode_prompts, read_prompts
from preftune.errors import ConfigError, DataError, ModelError, RunError, writing
from preftune.files import write_json
from preftune.formats.account import Account, require_matched
from preftune.formats.parsers import Reading
from preftune.lifecycle.packing_probe import Values, admit, state_values, token_values
from preftune.model import load
from preftune.model.adapter import add_lora, merge_adapter
from preftune.model.attention import restore_attention
from preftune.model.compile import compile_blocks
from preftune.model.logprobs import Scorer
from preftune.model.precision import cast_to, exact_in, exact_state, restore_base, save_dtype_of
from preftune.model.scalar import load_scalar, scalar_scorer
from preftune.model.weights import note
from preftune.sources.read import fingerprint
from preftune.train.display import Display
from preftune.train.optim import Weights
from preftune.train.run import Run
from preftune.types import PreferenceGroup, TokenGroup

PROVISIONAL = 4096  # token slots of a micro-batch until lifecycle.estimate has chosen


class ModelKind(NamedTuple):
    """How a kind of model is opened: `values` are what the gate compares, `adapter` is peft's name of the kind."""

    load: Callable[[load.Source, torch.dtype], Any]
    scorer: Callable[[Any], Scorer]
    values: Values
    adapter: str


LANGUAGE_MODEL = ModelKind(load.load_model, Scorer.of, token_values, "CAUSAL_LM")
REWARD_MODEL = ModelKind(partial(load_scalar, new_head=True), scalar_scorer, state_values, "SEQ_CLS")


@dataclass(frozen=True, slots=True)
class TextData:
    """The rows of a run, still text."""

    train: list[PreferenceGroup]
    held_out: list[PreferenceGroup]
    accounts: tuple[Account, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class TokenData:
    """The same in token ids."""

    train: list[TokenGroup]
    held_out: list[TokenGroup]


@dataclass(slots=True)
class Policy:
    """The model that is trained, with what is needed to save it.

    start_hash     hash of its weights at step 0
    precise        its weights and saved buffers in fp32 by name, where the source has more digits than the compute
                   precision; with LoRA, only where the base is saved, too
    dtypes         the precision of each tensor in `final/`, by name; `save_dtype` for all others
    layout_note    why batches are laid out as rows, if they had to be
    base_unsaved   an adapter has no model on disk that it could name as its base: it is saved beside the run
    """

    scorer: Scorer
    tokenizer: Any
    renderer: Renderer
    save_dtype: torch.dtype
    start_hash: str
    budget: Budget
    precise: Mapping[str, torch.Tensor]
    layout_note: str = ""
    base_unsaved: bool = field(default=False)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def model(self) -> Any:
        return self.scorer.model


def limits_of(config: DataConfig) -> Limits:
    """How long sequences may be, and what happens to rows that cannot be rendered."""
    return Limits(config.max_length, config.max_prompt_length, config.overlong, config.bad_rows)


def read_data(config: DataConfig) -> TextData:
    """Training and held-out groups. Raises DataError for everything that can be known before tokenising."""
    reading = reading_of(config)

    def groups_of(source: str | Sequence[str]) -> tuple[list[PreferenceGroup], Account]:
        found, account = read_groups(source, reading)
        account.check(config.max_dropped)
        return found, account

    return _split_off(config, groups_of, config.allow_overlap)


def reading_of(config: DataConfig) -> Reading:
    """How the rows are read: every setting of the section that says so."""
    return Reading(
        config.format,
        config.columns,
        tuple(config.ignore),
        config.pairs,
        config.margin_from_scores,
        config.as_chat,
        config.allow_empty_prompts,
        config.bad_rows,
        config.winner_values,
    )


def read_prompt_data(config: PromptConfig) -> TextData:
    """Training and held-out prompts, as groups without responses."""

    def prompts_of(source: str | Sequence[str]) -> tuple[list[PreferenceGroup], Account]:
        found, account = read_prompts(source, Reading(columns=config.columns, ignore=tuple(config.ignore)))
        account.check(config.max_dropped)
        return (as_chat(found) if config.as_chat else found), account

    return _split_off(config, prompts_of)


def _split_off(
    config: DataConfig | PromptConfig,
    read: Callable[[str | Sequence[str]], tuple[list[PreferenceGroup], Account]],
    overlap: bool = False,
) -> TextData:
    """What is trained on, and what is held out: a file of its own, or a share."""
    train, account = read(config.train)
    sources = [config.train] if isinstance(config.train, str) else list(config.train)
    if isinstance(config.eval, str):
        held_out, held_account = read(config.eval)
        require_matched([account, held_account])
        if not overlap:
            refuse_overlap(train, held_out)
        return TextData(train, held_out, (account, held_account), fingerprint([*sources, config.eval]))
    require_matched([account])
    held_out = []
    if config.eval is not None:
        train, held_out = hold_out(train, config.eval)
    return TextData(train, held_out, (account,), fingerprint(sources))


def tokenize_data(data: TextData, renderer: Renderer, config: DataConfig) -> TokenData:
    """Token ids of all groups, every row accounted for."""
    limits = limits_of(config)
    train_account, held_account = data.accounts[0], data.accounts[-1]
    tokens = TokenData(
        tokenize(data.train, renderer, limits, train_account),
        tokenize(data.held_out, renderer, limits, held_account),
    )
    for account in data.accounts:
        account.check(config.max_dropped)
    if not tokens.train:
        raise DataError("no group is left for training", where=train_account.source)
    return tokens


def load_policy(
    config: TunedConfig, source: load.Source, renderer: Renderer, model: Any = None, opening: ModelKind = LANGUAGE_MODEL
) -> Policy:
    """The policy at step 0 on its device, with an adapter if the config asks for one; dropout is off."""
    torch.manual_seed(config.train.seed)
    given = model is not None
    if given:
        _require_usable(model, config.model)
        model = model.eval()
        precise: dict[str, torch.Tensor] = {}
        dtypes, save_dtype = {name: t.dtype for name, t in exact_state(model).items()}, model.dtype
    else:
        dtypes = load.source_dtypes(source)
        model, precise = read_policy(config, source, opening, dtypes)
        dtypes = {name: torch.float32 if kind == torch.float64 else kind for name, kind in dtypes.items()}
        save_dtype = save_dtype_of(model, dtypes) if dtypes else load.source_dtype(source)
    if config.model.save_dtype != "auto":
        dtypes, save_dtype = {}, load.DTYPES[config.model.save_dtype]
    model.config.use_cache = False
    if config.lora:
        model = add_lora(model, config.lora.rank, config.lora.alpha, config.lora.targets, opening.adapter)
    model.to(device_of(model if given else None))
    scorer = opening.scorer(model)
    layout, note = admit(scorer, config.model.attention, opening.values)
    if config.model.gradient_checkpointing:
        load.checkpoint_activations(model)
    if config.model.compile:
        compile_blocks(model, constant=layout != "rows")
    return Policy(
        scorer,
        renderer.tokenizer,
        renderer,
        save_dtype,
        load.weights_hash(model),
        Budget(layout, PROVISIONAL, constant=config.model.compile and layout != "rows"),
        precise,
        note,
        base_unsaved=bool(config.lora) and (given or source.adapter is not None),
        dtypes=dtypes,
    )


def read_policy(
    config: TunedConfig, source: load.Source, opening: ModelKind, stored: Mapping[str, torch.dtype]
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model in compute precision, and its tensors in fp32 where that rounds them and they are needed."""
    dtype = compute_dtype(config.model)
    rounded = source.adapter is not None or not exact_in(stored.values() or {load.source_dtype(source)}, dtype)
    saved = (
        not config.lora or source.adapter is not None or opening is REWARD_MODEL
    )  # an adapter's base stays where it is
    precise = {}
    if rounded and saved and dtype != torch.float32:
        precise = exact_state(opening.load(source, torch.float32))
    if torch.float64 in stored.values():
        note(f"note: {source.base}: its float64 weights are rounded to fp32, the largest precision of a run")
    return opening.load(source, dtype).requires_grad_(True), precise


def _require_usable(model: Any, config: ModelConfig) -> None:
    """Raises for a model given in memory that the config cannot mean."""
    if hasattr(model, "peft_config"):
        raise ModelError(
            "a model with an adapter is given",
            why="its reference would be the model without the adapter",
            fix="load the model without the adapter, or give PeftModel.merge_and_unload(); the section lora adds one",
        )
    if config.dtype != "auto" and load.DTYPES[config.dtype] != model.dtype:
        raise ConfigError(
            f"{config.dtype} is asked for, but the model given is {model.dtype}",
            where="model.dtype",
            fix="leave it at auto, or give the model in that precision",
        )


def require_same_vocabulary(tokenizer: Any, other: Any, where: str, what: str = "reference") -> None:
    """Raises ModelError unless both tokenizers give every token the same id."""
    if tokenizer.get_vocab() != other.get_vocab():
        raise ModelError(
            "policy and reference have different vocabularies"
            if what == "reference"
            else f"the {what} has another vocabulary",
            where=where,
            why="the same ids would mean different tokens",
            fix="give the model that the policy was tuned from, or one of its kind",
        )


def compute_dtype(config: ModelConfig) -> torch.dtype:
    """bf16 on a GPU that has it, else fp32, unless the config says otherwise."""
    if config.dtype != "auto":
        return load.DTYPES[config.dtype]
    native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def device_of(given: Any) -> torch.device:
    """Where to train: where a model given in memory lies, else a GPU if there is one."""
    if given is not None:
        device: torch.device = next(iter(given.parameters())).device
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def check_policy(policy: Policy, data: TokenData, source: load.Source) -> None:
    """Raises where tokens and model do not fit each other."""
    rows = policy.model.get_input_embeddings().weight.shape[0]
    require_fit(data, rows, load.max_positions(policy.model.config), source)


def require_fit(data: TokenData, rows: int, limit: int | None, source: load.Source) -> None:
    """Raises for tokens that a model with `rows` embeddings and `limit` positions cannot read."""
    groups = [*data.train, *data.held_out]
    require_vocabulary(groups, rows, source.base)
    require_length(groups, limit, "data.max_length")


def require_positions(model: Any, groups: Sequence[TokenGroup], where: str) -> None:
    """Raises ConfigError for sequences that are longer than the model was built for."""
    require_length(groups, load.max_positions(model.config), where)


def require_length(groups: Sequence[TokenGroup], limit: int | None, where: str) -> None:
    """Raises ConfigError for sequences of more than `limit` tokens."""
    longest = max((group.longest for group in groups), default=0)
    if limit and longest > limit:
        raise ConfigError(
            f"sequences of {longest} tokens, but the model was built for {limit}",
            where=where,
            fix=f"set {where}={limit}" if where == "data.max_length" else f"lower {where}: prompts are part of them",
        )


def prompts_that_fit(
    groups: Sequence[PreferenceGroup],
    renderer: Renderer,
    config: Any,
    new_tokens: int,
    account: Account,
    where: str,
    longest: int = 1 << 20,
) -> list[Prompt]:
    """The prompts that leave room for `new_tokens` in the model's positions; the others are dropped and counted.

    Raises ConfigError where no prompt could, DataError where none does.
    """
    limit = load.max_positions(config)
    if limit and new_tokens >= limit:
        raise ConfigError(
            f"{new_tokens} new tokens after a prompt, but the model was built for {limit}",
            where=where,
            fix="sample fewer tokens",
        )
    prompts = encode_prompts(groups, renderer, min(longest, limit - new_tokens) if limit else longest, account)
    if not prompts:
        reasons = "; ".join(account.dropped) or "there is none"
        raise DataError(f"no prompt is left: {reasons}", where=account.source, fix=f"lower {where}, or shorten prompts")
    return prompts


def open_run(config: RunConfig, data: TextData, tokens: TokenData, display: Display, policy: Policy) -> Run:
    """The run folder, new or resumed. A resumed run must start from the weights and the token ids it once had."""
    settings = config.model_dump(mode="json")
    run = Run.open(Path(config.out), settings, data.fingerprint, display, schema=type(config))
    require_same_start(run, policy)
    ids = _ids_hash([*tokens.train, *tokens.held_out])
    if run.known("ids") not in (None, ids):
        raise RunError(
            "the data come to other token ids than when this run started",
            where=config.out,
            why="the tokenizer, its chat template or a format function has changed",
            fix="go back to the old ones to resume, or choose another `out`",
        )
    run.note(
        ids=ids,
        chat=policy.renderer.settings.record(),
        start_weights=policy.start_hash,
        data={a.source: {"read": a.read, "kept": a.kept, "format": a.format} for a in data.accounts},
    )
    return run


def require_same_start(run: Run, policy: Policy) -> None:
    """Raises RunError if a resumed run does not have the model that it began with."""
    Run.require_start(run.folder, policy.start_hash)


def export(policy: Policy, weights: Weights, folder: Path, merged: bool = False) -> Path:
    """Write `folder`/final: a full model in its save dtype, or an adapter in fp32 with the base it needs.

    `merged`: an adapter goes into the model's weights.
    """
    final, model = folder / "final", policy.model
    restore_attention(model)
    part = folder / f"final.part-{os.getpid()}"
    saved = (policy.dtypes, policy.save_dtype, policy.precise)
    for parameter, master in zip(weights.parameters, weights.masters, strict=True):
        parameter.data = master.detach()
    model.config.use_cache = True
    if hasattr(model, "peft_config") and merged:
        model = merge_adapter(restore_base(model, policy.precise), str(final))
    if hasattr(model, "peft_config"):
        base = folder / "base" if policy.base_unsaved else Path(model.name_or_path)
        if policy.base_unsaved or base.is_dir():  # a relative path would only hold where this command ran
            model.peft_config["default"].base_model_name_or_path = str(base.resolve())
        load.save_model(model, policy.tokenizer, part, save_embedding_layers=False)
        if policy.base_unsaved:
            load.save_model(cast_to(restore_base(model, policy.precise).unload(), *saved), policy.tokenizer, base)
    else:
        load.save_model(cast_to(model, *saved), policy.tokenizer, part)
    record = policy.renderer.settings.record()
    if record != ChatSettings().record():  # the template alone does not say how it was used
        write_json(part / load.CHAT_RECORD, record)
    with writing(final):
        if final.exists():  # left by a run that was killed before it noted its end
            shutil.rmtree(final)
        os.replace(part, final)
    return final


def _ids_hash(groups: Sequence[TokenGroup]) -> str:
    digest = hashlib.sha256()
    for group in groups:
        for ids in (group.prompt_ids, *group.response_ids):
            digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return digest.hexdigest()
