"""The config of runs on preference data, labelled responses and demonstrations. Unknown keys are errors.

docs/lookup/configuration.md is generated from the field descriptions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from preftune.config.data import EvalSources, TrainSources, check_stream
from preftune.config.section import Section as Section
from preftune.config.train import BestConfig as BestConfig
from preftune.config.train import BestSection as BestSection
from preftune.config.train import TrainConfig as TrainConfig
from preftune.config.values import (
    check_best,
    check_loss,
    check_template_arguments,
    positive,
    read_dtype,
    read_init,
    read_loss,
)

TemplateArguments = Annotated[dict[str, Any], AfterValidator(check_template_arguments)]
AsChat = bool | Literal["auto"]


class ModelConfig(Section):
    path: str
    """The policy: a Hugging Face model folder, a PEFT adapter folder, or a Hub id (`name` or `name@revision`)."""
    dtype: Annotated[Literal["auto", "fp32", "bf16"], BeforeValidator(read_dtype)] = "auto"
    """Compute precision. bf16 keeps fp32 master weights. auto: bf16 on a GPU that supports it and, for models with a
    hidden size of at least 256, on a CPU with AMX; otherwise fp32. A run prints which one it uses and why."""
    attention: Literal["auto", "shared", "packed", "rows"] = "auto"
    """How a group's prompt and responses are arranged for the model. shared: the prompt is computed once for all its
    responses, without padding; packed: no padding; rows: one padded row per response. auto: shared if a test on the
    model shows that its outputs do not change, otherwise rows; the reason is printed."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass. Takes about a third more time and much less memory."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the transformer blocks with torch.compile, which takes up to a minute before the first step and on a CPU
    needs a C++ compiler. All lengths share one compilation, except in fp32 on a CPU: there, packed and shared rows are
    padded to quarters of batch.tokens, and each of these lengths is compiled. auto: compile bf16 models on a CPU with
    AMX, if the run is long enough to gain from it."""
    save_dtype: Annotated[Literal["auto", "fp32", "bf16"], BeforeValidator(read_dtype)] = "auto"
    """Precision of the weights in `final/`. auto: the precision of the model that the run started from."""
    quant: Literal["nf4", "int8"] | None = None
    """Store the linear layers of the transformer blocks in 4 or 8 bits; needs `lora`. nf4: as in QLoRA, needs
    preftune[quant]; int8: one scale per output row. Products are computed in model.dtype. null: no quantisation."""


class ReferenceConfig(Section):
    kind: Literal["auto", "frozen", "adapter-off", "cached", "none"] = "auto"
    """Source of the reference log-probs. frozen: a second copy of the model; adapter-off: the policy without its LoRA;
    cached: computed once and stored on disk; none: reference-free (all zero). auto: none if the loss uses no
    reference, adapter-off with LoRA, frozen if the loss compares whole distributions, otherwise cached."""
    path: str | None = None
    """Model to use as the reference. null: the policy at step 0."""


class DataConfig(Section):
    train: TrainSources
    """A file (.jsonl, .json, .csv, .tsv, also compressed as .gz, .bz2, .xz or .zst; .parquet, .arrow), a folder of such
    files, a pattern (`data/*.jsonl`), a URL (`s3://...`), a Hub id, or a list of these, in any formats. An entry
    of the list may be a section: see [sources of a mixture](#sources-of-a-mixture). Add a split to a folder or
    Hub id: `name:split`, `name:config:split`, and a slice to any name: `name[:1000]`, `name[10%:]`."""
    eval: EvalSources = None
    """Held-out data: a file or a list of sources as in `data.train`, or a share of the training data between 0 and 1. A
    share is chosen by prompt; no prompt and no row is in both parts."""
    limit: int | None = Field(None, ge=1)
    """Read only the first N rows of each source of the training data. Rows that `data.where` leaves out do not
    count."""
    stream: bool = False
    """Read the training data while training, in order, instead of before: for data that do not fit on the disk. Needs
    `train.max_steps`."""
    shuffle_buffer: int = Field(1000, ge=1)
    """With `data.stream`: the number of groups that are held in memory to draw the next one from, with `train.seed`. 1
    keeps the order of the data."""
    format: str = "auto"
    """Name of the data format, or `file.py:function` for your own. auto: detect the format from the rows."""
    columns: dict[str, str] = Field({})
    """Columns of your data for preftune's fields, e.g. {prompt: question, chosen: answer_a, rejected: answer_b}."""
    winner_values: dict[str, Any] = Field({})
    """Meaning of the values in the column `winner` if they are not recognised, e.g. {a: left, b: right, tie: none}. An
    entry may be a list of values."""
    chat_template: str | None = None
    """Chat template to use instead of the tokenizer's: a .jinja file, or `dialogue` for models without a template. It
    is saved with the model."""
    chat_template_kwargs: TemplateArguments = Field({})
    """Arguments of the chat template in addition to the messages, e.g. {enable_thinking: false}."""
    as_chat: AsChat = "auto"
    """Which text prompts to convert to chat messages. auto: HH-RLHF transcripts, if the model has a chat template.
    true: all; a text that is not a transcript becomes one user message. false: none."""
    scored_turns: Literal["all", "last"] = "all"
    """Which assistant turns of a dialogue to score. all: every turn of a response of several messages, and in sft every
    assistant turn of a dialogue. last: only the last turn; the earlier ones are context. Messages of users and tools
    are never scored."""
    system_message: Literal["template", "merge"] = "template"
    """How to render system messages. template: as the chat template does, which is an error for templates without a
    system message. merge: put their text before the next user message, after an empty line."""
    thinking: Literal["template", "keep", "unscored", "drop"] = "template"
    """How to render the reasoning in chat responses. template: as the chat template does. keep: as in the data, after
    the generation prompt; if that prompt opens <think>, a response without reasoning closes it immediately. Use keep
    for templates that remove reasoning (DeepSeek-R1, QwQ). unscored: as keep, but the reasoning is only context. drop:
    remove the reasoning from all messages."""
    where: list[str] = Field([])
    """Conditions on columns; only rows that satisfy all of them are used, e.g. [score_ratio >= 2, source != evol]. The
    other rows are counted, but not towards data.max_dropped."""
    drop: str | None = None
    """A file with rows to leave out, one `FILE:LINE` per line, as messages name rows. The pair browser of a report
    saves such a list. These rows are counted, but not towards data.max_dropped."""
    aspect: str = ""
    """Which judgement to use if the data have several: helpful or safe (PKU-SafeRLHF), the name of a rating column
    (HelpSteer2: helpfulness, correctness, ...) or of an annotation (UltraFeedback: truthfulness, honesty, ...)."""
    ties: Literal["drop", "half"] = "drop"
    """Pairs that the data call a tie. drop: leave them out; half: use them with the probability 0.5 for each response.
    Ties do not count as dropped rows."""
    max_length: int = Field(1024, ge=2)
    """Maximum number of tokens in prompt and response together."""
    max_prompt_length: int | None = Field(None, ge=1)
    """Number of prompt tokens to keep when a sequence is too long; the beginning of the prompt is cut. null: the space
    that the longest response of the group leaves, but at least half of max_length."""
    overlong: Literal["truncate", "drop", "error"] = "truncate"
    """What to do with a group that exceeds max_length."""
    pairs: Literal["all", "best-worst", "adjacent"] = "all"
    """Which pairs to form from a ranked list of responses. Responses with equal rank form no pair."""
    margin_from_scores: bool = False
    """Set the margin of each pair to the difference between the scores of its responses."""
    ignore: list[str] = Field([])
    """Columns to ignore. A column that is neither used, recognised as metadata, nor listed here is an error."""
    bad_rows: Literal["error", "drop"] = "error"
    """What to do with a row that cannot be read (missing column, null, wrong type) or that the chat template cannot
    render."""
    max_dropped: float = Field(0.2, ge=0, le=1)
    """Stop if more than this share of the rows is dropped."""
    allow_overlap: bool = False
    """Accept prompts that are in both the training and the evaluation data."""
    allow_empty_prompts: bool = False
    """Accept data in which most rows have an empty prompt."""
    allow_dropped_text: bool = False
    """Accept a chat template that removes part of a response, such as its reasoning. The affected rows are counted."""

    @model_validator(mode="after")
    def _streamable(self) -> DataConfig:
        if self.stream:
            check_stream(self.train, self.eval, self.limit)
        return self


# Keys of DataConfig that a command does not use. `score` holds nothing out; `sample` and `winrate` read only prompts.
UNUSED_BY_SCORE = ("eval", "allow_overlap", "stream", "shuffle_buffer")
UNUSED_BY_SAMPLE = (
    *(*UNUSED_BY_SCORE, "max_length", "overlong", "pairs", "margin_from_scores"),
    *("thinking", "allow_dropped_text", "scored_turns", "ties"),
)
UNUSED_BY_WINRATE = (*UNUSED_BY_SAMPLE, "max_prompt_length")


class OptimConfig(Section):
    name: Literal["adamw", "rmsprop"] = "adamw"
    """adamw: torch's fused AdamW. rmsprop: torch's RMSprop with its default settings, as in the DPO paper."""
    lr: float = Field(5e-7, gt=0, le=1)
    """Peak learning rate. auto, or not set: 5e-7 in dpo, iterate and data noise, 2e-5 in sft, 1e-5 in reward, 3e-6 in
    ppo; ten times as much with `lora`. The number that is used is in the manifest."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up: linear or half-cosine decay to 0, or constant."""
    warmup: float = Field(0.1, ge=0)
    """Length of the warm-up: a share of all steps if below 1, otherwise a number of steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay: decoupled in adamw, added to the gradient in rmsprop."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Scale the gradient down to this norm if it is larger."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Precision in which adamw stores its two moments. bf16 takes 4 bytes per trained parameter instead of 8. The
    moments are then rounded stochastically; all arithmetic is fp32."""

    @model_validator(mode="after")
    def _moments_of_adamw(self) -> OptimConfig:
        if self.moments == "bf16" and self.name != "adamw":
            raise ValueError("optim.moments=bf16 applies to adamw only; remove it, or set optim.name=adamw")
        return self


class SlotConfig(Section):
    tokens: int | Literal["auto"] = "auto"
    """Token slots in one micro-batch. Affects memory and speed, but never the gradient."""

    @field_validator("tokens")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str | None:
        return positive(value)


class BatchConfig(SlotConfig):
    pairs: int = Field(64, ge=1)
    """Preference pairs in one optimizer step (sft and unpaired data: responses)."""


class LoraConfig(Section):
    rank: int = Field(16, ge=1)
    """Rank of the adapter. A run without the section `lora` trains all weights."""
    alpha: float = Field(32.0, gt=0)
    """The output of the adapter is scaled by alpha / rank, with rslora by alpha / sqrt(rank)."""
    targets: str | list[str] = "all-linear"
    """Modules that get an adapter. A kind: all-linear, attention or mlp (the linear layers of the transformer blocks);
    a list of kinds and module names, e.g. [attention, lm_head]; or a regular expression that matches whole names."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps the learning rate of small ranks valid for large ones (Kalajdzievski
    2023, arXiv:2312.03732)."""
    dora: bool = False
    """Train lengths and directions of the weights apart (DoRA, Liu et al. 2024, arXiv:2402.09353). Slower."""
    modules_to_save: list[str] = []
    """Modules that are trained with all their weights and saved with the adapter, e.g. [embed_tokens, lm_head]."""
    init: Annotated[Literal["default", "gaussian"], BeforeValidator(read_init)] = "default"
    """Initial values of the matrix A; B is 0, so a new adapter does not change the model. default: uniform (He);
    gaussian: normal with the standard deviation 1 / rank."""
    adapter: Literal["merge", "keep"] = "merge"
    """What to do if model.path is an adapter folder. merge: merge it into its base model, which is saved with the run.
    keep: keep it unchanged below the new adapter, and save both as one adapter for the original base model."""

    @model_validator(mode="after")
    def _keep_plain(self) -> LoraConfig:
        if self.adapter == "keep" and (self.dora or self.modules_to_save):
            name = "dora" if self.dora else "modules_to_save"
            raise ValueError(f"with {name}, two adapters cannot be saved as one; set lora.adapter=merge")
        return self


class MonitorConfig(Section):
    prompts: int = Field(32, ge=2)
    """Number of prompts that the policy responds to at every evaluation, always the same: held-out prompts, or training
    prompts if none are held out. `monitor: null` turns the monitor off."""
    samples: int = Field(1, ge=1)
    """Responses per prompt, sampled with the same random numbers every time."""
    max_new_tokens: int = Field(128, ge=1)
    """Maximum number of tokens per response, limited to half of the model's context. The responses in the data are
    compared up to the same length."""


class LossTerm(Section):
    """One loss of a weighted sum: its name, its weight and its parameters."""

    name: str
    weight: float = Field(1.0, gt=0)
    parameters: dict[str, Any] = Field({})


LORA_LR = 10  # the learning rate of LoRA, relative to that of all weights


class TunedConfig(Section):
    """The sections that all training methods share."""

    model: ModelConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    lora: LoraConfig | None = None
    out: str
    track: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field([])
    """Trackers that receive the metrics in addition to metrics.jsonl. Each needs the package of the same name."""
    track_names: list[Literal["trl", "openrlhf", "original"]] = []
    """Also send the metrics to the trackers under the names of these programs. original: the code of the DPO paper."""

    @model_validator(mode="before")
    @classmethod
    def _learning_rate(cls, values: Any) -> Any:
        """Fill in optim.lr. LoRA needs about ten times the rate of full fine-tuning (Schulman et al., "LoRA Without
        Regret", 2025; the Zephyr recipes of the alignment handbook: 5e-7 and 5e-6 in DPO, 2e-5 and 2e-4 in SFT)."""
        optim = values.get("optim", cls.model_fields["optim"].default) if isinstance(values, dict) else None
        if isinstance(optim, OptimConfig):
            if "optim" in values and "lr" in optim.model_fields_set:
                return values
            optim = optim.model_dump(exclude_unset=True) | ({} if "optim" in values else {"lr": "auto"})
        if not isinstance(optim, dict) or optim.get("lr", "auto") != "auto":
            return values
        full = cls.model_fields["optim"].default.lr
        lr = round(LORA_LR * full, 12) if values.get("lora") is not None else full
        return {**values, "optim": {**optim, "lr": lr}}

    @model_validator(mode="after")
    def _adapter_dtype(self) -> TunedConfig:
        if self.lora and self.model.save_dtype != "auto":
            raise ValueError("model.save_dtype does not apply to LoRA: adapters are saved in fp32; remove it")
        if self.model.quant and not self.lora:
            raise ValueError("model.quant needs lora: weights in 4 or 8 bits cannot be trained; add the section lora")
        return self


class RunConfig(TunedConfig):
    """The sections that the methods that train on a data file share."""

    data: DataConfig
    batch: BatchConfig = BatchConfig()

    @model_validator(mode="after")
    def _stream(self) -> RunConfig:
        if self.data.stream:
            if self.train.max_steps is None:
                raise ValueError("data.stream needs train.max_steps, because the number of rows is not known")
            if self.train.epochs != 1:
                raise ValueError("with data.stream, the data are read until train.max_steps; remove train.epochs")
        return self


class EvaluatedConfig(RunConfig):
    """A run whose result can be the weights of its best evaluation."""

    best: BestSection = None

    @model_validator(mode="after")
    def _best_needs_evaluations(self) -> EvaluatedConfig:
        check_best(self.best, self.data.eval, self.train.eval_every)
        return self


class SFTConfig(EvaluatedConfig):
    optim: OptimConfig = OptimConfig(lr=2e-5)
    samples: int = Field(4, ge=0)
    """Number of prompts that the model responds to at every evaluation, for the report: held-out prompts, or training
    prompts if none are held out. 0: none."""
    out: str = "runs/sft"
    """The run folder. Rerun the same command to resume."""


Losses = Annotated[dict[str, Any] | list[dict[str, Any]], BeforeValidator(read_loss), AfterValidator(check_loss)]


def terms_of(loss: Losses) -> list[LossTerm]:
    """Return the section `loss` as a list of terms."""
    return [
        LossTerm(
            name=term.get("name", "sigmoid"),
            weight=term.get("weight", 1.0),
            parameters={key: value for key, value in term.items() if key not in ("name", "weight")},
        )
        for term in (loss if isinstance(loss, list) else [loss])
    ]


class DPOConfig(EvaluatedConfig):
    loss: Losses = Field({"name": "sigmoid", "beta": 0.1})
    """A loss with its parameters, the name of a loss, or a list of losses with weights (a weighted sum)."""
    reference: ReferenceConfig = ReferenceConfig()
    monitor: MonitorConfig | None = MonitorConfig()
    report_pairs: int = Field(256, ge=0)
    """Number of pairs that are scored at about twelve steps for the figures of the report: held-out pairs, or training
    pairs if none are held out. Fewer, if that would cost more than 5 % of the run. 0: none."""
    out: str = "runs/dpo"
    """The run folder. Rerun the same command to resume."""

    @property
    def terms(self) -> list[LossTerm]:
        return terms_of(self.loss)


class RewardConfig(EvaluatedConfig):
    optim: OptimConfig = OptimConfig(lr=1e-5)
    centre: float = Field(0.0, ge=0)
    """Weight of the penalty (r_chosen + r_rejected)^2, which keeps rewards near 0. The likelihood does not determine
    their level."""
    normalise: bool = True
    """Store the mean and standard deviation of the rewards of the training responses with the model. The rewards that
    commands read from it are then (r - mean) / std."""
    report_pairs: int = Field(256, ge=0)
    """Number of pairs that are scored at about twelve steps for the figures of the report: held-out pairs, or training
    pairs if none are held out. Fewer, if that would cost more than 5 % of the run. 0: none."""
    out: str = "runs/reward"
    """The run folder. Rerun the same command to resume."""


class NoiseConfig(RunConfig):
    """The config of `preftune data noise`: one DPO or reward run per fold, with the sections of these runs."""

    folds: int = Field(5, ge=2)
    """Number of folds. The data are split by prompt, and each fold is ranked by a model trained on the other folds."""
    ranker: Literal["dpo", "reward"] = "dpo"
    """Model that ranks the pairs. dpo: the implicit reward of a DPO run; reward: a reward model."""
    confidence: float = Field(0.8, gt=0.5, lt=1)
    """List pairs whose label is wrong with at least this calibrated probability (above 0.5)."""
    loss: Losses = Field({"name": "sigmoid", "beta": 0.1})
    """As in preftune dpo. Used with ranker=dpo."""
    reference: ReferenceConfig = ReferenceConfig()
    out: str = "runs/noise"
    """The run folder. Rerun the same command to resume after the last finished part."""

    @property
    def terms(self) -> list[LossTerm]:
        return terms_of(self.loss)
