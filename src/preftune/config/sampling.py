"""The sections of the methods that sample: PPO and rounds of preference training.

As in schema.py, field descriptions are the reference documentation.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from preftune.config.schema import (
    BatchConfig,
    Losses,
    LossTerm,
    OptimConfig,
    Section,
    SlotConfig,
    TemplateArguments,
    TunedConfig,
    share,
    terms_of,
)


class PromptConfig(Section):
    train: str | list[str]
    """Prompts: rows with `prompt` (text or messages), or data of any format, of which only the prompts are taken."""
    eval: str | float | None = None
    """Held-out prompts: a file, or a share below 1 of the training prompts."""
    columns: dict[str, str] = Field({})
    """Columns of the file under preftune's names, e.g. {prompt: question}."""
    ignore: list[str] = Field([])
    """Columns to treat as absent."""
    chat_template: str | None = None
    """As for the other methods."""
    chat_template_kwargs: TemplateArguments = Field({})
    """Arguments of the chat template besides the messages, e.g. {enable_thinking: false}."""
    as_chat: bool = False
    """Send text prompts through the chat template, as one user message. Transcripts of HH-RLHF become the messages that
    they consist of."""
    max_prompt_length: int = Field(512, ge=1)
    """Longer prompts are dropped, and counted."""
    max_dropped: float = Field(0.2, ge=0, le=1)
    """Stop when a larger share of the rows is dropped."""

    @field_validator("eval")
    @classmethod
    def _share(cls, value: str | float | None) -> str | float | None:
        return share(value)


class ValueConfig(Section):
    kind: Literal["network", "head"] = "network"
    """network: a model of its own with a scalar head; head: a linear map of the policy's last hidden states."""
    path: str | None = None
    """Where the value network starts: a model folder, often the reward model. null: as the policy, with a head of 0."""

    @model_validator(mode="after")
    def _a_head_has_no_folder(self) -> ValueConfig:
        if self.kind == "head" and self.path:
            raise ValueError("a head on the policy starts at 0; value.path is for kind=network")
        return self


class RolloutConfig(Section):
    prompts: int = Field(64, ge=1)
    """Prompts in one step."""
    responses: int = Field(1, ge=1)
    """Responses sampled for each, at temperature 1: the gradient is that of the distribution that was sampled."""
    max_new_tokens: int = Field(64, ge=1)
    """Where a response is cut off."""
    missing_eos: Literal["keep", "stop"] = "keep"
    """keep: a response that was cut off is rewarded like any other, less the penalty; stop: it ends the run."""
    missing_eos_penalty: float = Field(0.0, ge=0)
    """Taken off the reward of a response that was cut off."""

    @model_validator(mode="after")
    def _one_of_two(self) -> RolloutConfig:
        if self.missing_eos == "stop" and self.missing_eos_penalty:
            raise ValueError("missing_eos_penalty has no use with missing_eos=stop")
        return self


class PPOParameters(Section):
    kl_coef: float = Field(0.05, ge=0)
    """Weight of the KL penalty, DPO's beta; where it starts, if `kl_target` is set."""
    kl_target: float | None = Field(None, gt=0)
    """KL in nats a response that `kl_coef` is steered to. null: it stays fixed."""
    kl_horizon: int = Field(10_000, ge=1)
    """Responses over which the steering works: each step changes kl_coef by at most 0.2 * responses / horizon."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """How the KL to the reference enters; d = log policy - log reference. k1: d is taken off every token's reward.
    k2, k3: the KL of a token is a loss term, d^2 / 2 or exp(-d) - 1 + d, weighted with the policy's ratio to the
    sampling policy; the KL of later tokens stays in the rewards. All three have the gradient of the KL."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount of later rewards."""
    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation: 1 trusts the rewards alone, 0 the values."""
    clip: float = Field(0.2, gt=0)
    """The policy's ratio to the sampling policy gains nothing outside 1 +- clip."""
    value_clip: float | None = Field(0.2, gt=0)
    """A new value gains nothing further than this from the old one. null: not clipped."""
    value_coef: float = Field(0.5, gt=0)
    """Weight of the value loss."""
    epochs: int = Field(4, ge=1)
    """Passes over the responses of a step."""
    minibatches: int = Field(4, ge=1)
    """Updates in each pass."""
    whiten_rewards: bool = False
    """Divide the scores of a step by their standard deviation (their mean stays)."""
    whiten_advantages: bool = True
    """Bring the advantages of a step to mean 0 and variance 1."""


class PPOConfig(TunedConfig):
    data: PromptConfig
    reward: str
    """Folder of a reward model, `implicit:POLICY,REFERENCE,BETA`, `judge:URL,MODEL`, `vader`, `file.py:function` with
    (prompts, responses) -> rewards, or a control: `length`, `short`, `random`."""
    value: ValueConfig = ValueConfig()
    rollout: RolloutConfig = RolloutConfig()
    ppo: PPOParameters = PPOParameters()
    optim: OptimConfig = OptimConfig(lr=3e-6, schedule="constant", warmup=0)
    batch: SlotConfig = SlotConfig()
    out: str = "runs/ppo"
    """The run folder. Running the same command again resumes."""


class SampleConfig(Section):
    n: int = Field(8, ge=2)
    """Responses a prompt in every round."""
    temperature: float = Field(1.0, gt=0)
    """Of the sampling."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the likeliest tokens up to this share."""
    max_new_tokens: int = Field(64, ge=1)
    """Where a response is cut off."""
    evaluation: int = Field(4, ge=1)
    """Responses a prompt in the evaluation of every round, at temperature 1."""


class SelectConfig(Section):
    select: Literal["best-worst", "best-random", "all", "rso"] = "all"
    """Which judgements are made of a prompt's responses, as in `preftune pairs`."""
    gap: float = Field(0.0, ge=0)
    """Least difference in reward of a pair."""
    soft: bool = True
    """Label a pair with sigmoid(difference in reward)."""
    beta: float = Field(0.1, gt=0)
    """Of rso."""


class StopConfig(Section):
    kl: float | None = Field(None, gt=0)
    """Stop after a round whose policy is further than this from the first model, in nats a response; the policy of the
    round before is the result."""
    diversity: float | None = Field(None, gt=0, le=1)
    """Stop after a round in which a smaller share of the evaluation's word pairs is distinct; the result is that of
    the round before."""
    gain: float | None = None
    """Stop after a round that raised the reward by less; where it fell, the result is that of the round before."""


class IterateConfig(TunedConfig):
    data: PromptConfig
    reward: str
    """As in preftune ppo."""
    rounds: int = Field(3, ge=1)
    """Rounds of sampling, rewarding, pairing, training and evaluation."""
    prompts: int | None = Field(None, ge=1)
    """Prompts of a round; rounds go on where the last one ended. null: all of them in every round."""
    max_length: int = Field(1024, ge=2)
    """Most tokens of prompt and response together in training."""
    reference: Literal["fixed", "refreshed"] = "fixed"
    """fixed: every round is held to the first model; refreshed: to the policy it began with."""
    sample: SampleConfig = SampleConfig()
    pairs: SelectConfig = SelectConfig()
    loss: Losses = Field({"name": "sigmoid", "beta": 0.1})
    """As in preftune dpo."""
    batch: BatchConfig = BatchConfig()
    lr_decay: float = Field(1.0, gt=0, le=1)
    """Every round has this times the learning rate of the round before: late rounds refine what early ones found."""
    stop: StopConfig = StopConfig()
    out: str = "runs/iterate"
    """The folder. Running the same command again goes on from the last finished piece."""

    @property
    def terms(self) -> list[LossTerm]:
        return terms_of(self.loss)
