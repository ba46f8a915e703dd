"""The sections of a run's config. Unknown keys are errors; every field has a reader.

Field descriptions are the reference documentation (docs/configuration.md is made from them).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from preftune.config.load import refused


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    if not TYPE_CHECKING:  # type checkers make the signature from the fields

        def __init__(self, **values):
            """Raise ConfigError where pydantic raises ValidationError."""
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise refused(type(self), error, {}, type(self).__name__) from None

        # pydantic does not call this __init__ for nested sections, so their errors keep their paths
        __init__.__pydantic_base_init__ = True

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        allowed = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and allowed & {int, float} and bool not in allowed:
            raise ValueError("should be a number, not true or false")
        return value


def share(value: str | float | None) -> str | float | None:
    """`data.eval`, checked."""
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError("a share of the training data lies between 0 and 1; otherwise give a file")
    return value


RESERVED = {
    *("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
    *("sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now", "raise_exception", "preftune_dates"),
}
"""Arguments of transformers' apply_chat_template that preftune sets itself."""


def template_arguments(value: dict[str, Any]) -> dict[str, Any]:
    """`data.chat_template_kwargs`, checked."""
    taken = sorted(RESERVED & set(value))
    if taken:
        raise ValueError(f"{taken[0]} is set by preftune; leave it out")
    return value


TemplateArguments = Annotated[dict[str, Any], AfterValidator(template_arguments)]


class ModelConfig(Section):
    path: str
    """Hugging Face folder, PEFT adapter folder or Hub id (`name` or `name@revision`) of the policy."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute precision. bf16 keeps fp32 master weights. auto: bf16 on a GPU that has it, else fp32."""
    attention: Literal["auto", "shared", "packed", "rows"] = "auto"
    """How groups are laid out for the model. shared: each prompt once for all its responses, no padding; packed: no
    padding; rows: one padded row a response. auto: shared if a probe shows that the model's numbers stay the same,
    else rows, with a sentence that says why."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time for much less memory."""
    compile: bool = False
    """Compile the transformer blocks with torch.compile; packed and shared rows are padded to quarters of batch.tokens,
    so that few lengths are compiled. Takes a minute or so before the first step, and a C++ compiler on a CPU, where it
    gains little."""
    save_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the weights in `final/`. auto: that of the model the run started from."""


class ReferenceConfig(Section):
    kind: Literal["auto", "frozen", "adapter-off", "cached", "none"] = "auto"
    """Where reference log-probs come from. frozen: a second copy; adapter-off: the policy without its LoRA;
    cached: computed once and kept on disk; none: reference-free (all zero). auto: none if the loss uses no
    reference, adapter-off with LoRA, frozen if the loss compares whole distributions, else cached."""
    path: str | None = None
    """Another model as reference. null: the policy's state at step 0."""


class DataConfig(Section):
    train: str | list[str]
    """A file (.jsonl, .json, .csv, .tsv, also as .gz, .bz2, .xz, .zst; .parquet, .arrow), a folder of such files, or
    a Hub id; or a list of these. Folders and Hub ids may name a part: `name:split`, `name:config:split`."""
    eval: str | float | None = None
    """Held-out data: a file, or a share below 1 of the training data, held out by prompt and by row."""
    format: str = "auto"
    """Name of the data format, or `file.py:function` for your own. auto: found from the rows."""
    columns: dict[str, str] = {}
    """Columns of the file under preftune's names, e.g. {prompt: question, chosen: answer_a, rejected: answer_b}."""
    winner_values: dict[str, Any] = {}
    """What the values of the column `winner` mean, where they are not recognised, e.g. {a: left, b: right, tie: none}.
    A value may be a list of values."""
    chat_template: str | None = None
    """Template for chat messages in place of the tokenizer's: a .jinja file, or `dialogue` for models that have
    none. It is saved with the model."""
    chat_template_kwargs: TemplateArguments = {}
    """Arguments of the chat template besides the messages, e.g. {enable_thinking: false}."""
    as_chat: bool = False
    """Send text prompts and responses through the chat template, as one user and one assistant message. Transcripts of
    HH-RLHF become the messages that they consist of."""
    thinking: Literal["template", "keep"] = "template"
    """How the reasoning of chat responses is written. template: by the chat template. keep: as it is in the data, after
    the generation prompt; if that opens <think>, a response without reasoning closes it at once. For templates that
    leave out reasoning (DeepSeek-R1, QwQ)."""
    max_length: int = Field(1024, ge=2)
    """Most tokens of prompt and response together."""
    max_prompt_length: int | None = Field(None, ge=1)
    """Tokens a prompt keeps when a sequence is too long; its beginning is cut. null: what the longest response
    of the group leaves, but at least half of max_length."""
    overlong: Literal["truncate", "drop", "error"] = "truncate"
    """What happens to a group that exceeds max_length."""
    pairs: Literal["all", "best-worst", "adjacent"] = "all"
    """Which judgements a ranked list of responses makes; ties make none."""
    margin_from_scores: bool = False
    """Take each judgement's margin from the difference of the responses' scores."""
    ignore: list[str] = []
    """Columns to leave out. A column that is not used, not known to be metadata and not named here is an error."""
    bad_rows: Literal["error", "drop"] = "error"
    """What happens to a row that cannot be read (missing column, null, wrong type) or that the chat template cannot
    render."""
    max_dropped: float = Field(0.2, ge=0, le=1)
    """Stop when a larger share of the rows is dropped."""
    allow_overlap: bool = False
    """Accept prompts that are in the training and in the evaluation data."""
    allow_empty_prompts: bool = False
    """Accept data in which most rows have an empty prompt."""
    allow_dropped_text: bool = False
    """Accept a chat template that leaves out part of a response, such as its reasoning. The rows are counted."""

    @field_validator("eval")
    @classmethod
    def _share(cls, value: str | float | None) -> str | float | None:
        return share(value)


# Keys of DataConfig that commands have no use for: they hold nothing out, and some read prompts alone.
NOT_SCORED = ("eval", "allow_overlap")
NOT_SAMPLED = (
    *(*NOT_SCORED, "max_length", "overlong", "pairs", "margin_from_scores"),
    *("thinking", "allow_dropped_text"),  # of responses
)
NOT_JUDGED = (*NOT_SAMPLED, "max_prompt_length")


class OptimConfig(Section):
    name: Literal["adamw", "rmsprop"] = "adamw"
    """adamw is torch's fused AdamW, rmsprop torch's RMSprop with its defaults, as in the DPO paper."""
    lr: float = Field(5e-7, gt=0, le=1)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After the warm-up: down to 0 in a line or a half cosine, or constant."""
    warmup: float = Field(0.1, ge=0)
    """Below 1 a share of all steps, else a number of steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled in adamw, added to the gradient in rmsprop."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm where it exceeds it."""


class SlotConfig(Section):
    tokens: int | Literal["auto"] = "auto"
    """Token slots in one micro-batch. Changes memory and speed, never the gradient."""

    @field_validator("tokens")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1")
        return value


class BatchConfig(SlotConfig):
    pairs: int = Field(64, ge=1)
    """Judgements (for sft and unpaired data: responses) in one optimizer step."""


class TrainConfig(Section):
    epochs: int = Field(1, ge=1)
    """Passes over the training data, each in its own order."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps."""
    seed: int = Field(0, ge=0)
    """Decides the order of the data and the first weights of an adapter."""
    log_every: int = Field(1, ge=1)
    """Steps between lines of metrics.jsonl. A line has means since the last one; in ppo, those of its own step."""
    eval_every: int | None = Field(None, ge=1)
    """Steps between evaluations. null: before the first and after the last step."""
    save_every: int | None = Field(None, ge=1)
    """Steps between checkpoints. null: only when stopped."""


class LoraConfig(Section):
    rank: int = Field(16, ge=1)
    """Rank of the adapter. A run without the section `lora` trains all weights."""
    alpha: float = Field(32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    targets: str | list[str] = "all-linear"
    """Module names that get an adapter."""


class MonitorConfig(Section):
    prompts: int = Field(32, ge=2)
    """Prompts that the policy answers at every evaluation: held-out ones, or of the training data where none are held
    out, always the same. A run with `monitor: null` has no monitor."""
    samples: int = Field(1, ge=1)
    """Responses to each, with the same random numbers every time."""
    max_new_tokens: int = Field(128, ge=1)
    """Where a response is cut off, at most half of the model's positions. The data's responses are looked at as far."""


class LossTerm(Section):
    """One loss of a weighted sum: its name, its weight and exactly its own parameters."""

    name: str
    weight: float = Field(1.0, gt=0)
    parameters: dict[str, Any] = {}


class TunedConfig(Section):
    """What all methods that tune a model have in common."""

    model: ModelConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    lora: LoraConfig | None = None
    out: str
    track: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = []
    """Where metrics go besides metrics.jsonl. Each needs the package of its name."""

    @model_validator(mode="after")
    def _adapter_dtype(self) -> TunedConfig:
        if self.lora and self.model.save_dtype != "auto":
            raise ValueError("model.save_dtype is for full models; an adapter is saved in fp32")
        return self


class RunConfig(TunedConfig):
    """What the methods that learn from a file of responses have in common."""

    data: DataConfig
    batch: BatchConfig = BatchConfig()


class SFTConfig(RunConfig):
    optim: OptimConfig = OptimConfig(lr=2e-5)
    out: str = "runs/sft"
    """The run folder. Running the same command again resumes."""


def section_of_loss(value: Any) -> Any:
    """A loss's name alone is short for a section with that name."""
    return {"name": value} if isinstance(value, str) else value


def sound_loss(value: Any) -> Any:
    """The loss section, checked as far as its form goes."""
    if isinstance(value, list) and not value:
        raise ValueError("at least one loss")
    if isinstance(value, dict) and "weight" in value:
        raise ValueError("a weight belongs to a list of losses; one loss alone has none")
    for term in value if isinstance(value, list) else [value]:
        if not isinstance(term.get("name", "sigmoid"), str):
            raise ValueError("name must be text")
        weight = term.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError("weight must be a number above 0")
    return value


Losses = Annotated[dict[str, Any] | list[dict[str, Any]], BeforeValidator(section_of_loss), AfterValidator(sound_loss)]


def terms_of(loss: Losses) -> list[LossTerm]:
    """The loss section as a list of terms."""
    return [
        LossTerm(
            name=term.get("name", "sigmoid"),
            weight=term.get("weight", 1.0),
            parameters={key: value for key, value in term.items() if key not in ("name", "weight")},
        )
        for term in (loss if isinstance(loss, list) else [loss])
    ]


class DPOConfig(RunConfig):
    loss: Losses = {"name": "sigmoid", "beta": 0.1}
    """A loss and its parameters, its name alone, or a list of losses with weights (a weighted sum)."""
    reference: ReferenceConfig = ReferenceConfig()
    monitor: MonitorConfig | None = MonitorConfig()
    out: str = "runs/dpo"
    """The run folder. Running the same command again resumes."""

    @property
    def terms(self) -> list[LossTerm]:
        return terms_of(self.loss)


class RewardConfig(RunConfig):
    optim: OptimConfig = OptimConfig(lr=1e-5)
    centre: float = Field(0.0, ge=0)
    """Weight of (r_chosen + r_rejected)^2, which keeps rewards near 0; the likelihood leaves their level free."""
    normalise: bool = True
    """Note mean and standard deviation of the training responses' rewards with the model; whoever asks it for rewards
    gets (r - mean) / std."""
    out: str = "runs/reward"
    """The run folder. Running the same command again resumes."""


class NoiseConfig(RunConfig):
    """A DPO or reward run in every fold: each of its sections is that of the runs."""

    folds: int = Field(5, ge=2)
    """Parts of the data, by prompt; each is ranked by a model that is trained on the others."""
    ranker: Literal["dpo", "reward"] = "dpo"
    """What ranks: the implicit reward of a DPO run, or a reward model."""
    confidence: float = Field(0.8, gt=0.5, lt=1)
    """List judgements whose calibrated probability to be the wrong way round is at least this, above 0.5."""
    loss: Losses = {"name": "sigmoid", "beta": 0.1}
    """As in preftune dpo, for ranker=dpo."""
    reference: ReferenceConfig = ReferenceConfig()
    out: str = "runs/noise"
    """The folder. Running the same command again goes on from the last finished piece."""

    @property
    def terms(self) -> list[LossTerm]:
        return terms_of(self.loss)
