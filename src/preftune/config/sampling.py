"""The config of methods that sample during training: PPO, and rounds of preference training.

docs/lookup/configuration.md is generated from the field descriptions.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from preftune.config import schema
from preftune.config.data import HeldOut
from preftune.config.section import Section
from preftune.config.values import check_best


class PromptConfig(Section):
    train: str | list[str]
    """Prompts: rows with `prompt` (text or messages), or data of any format; only the prompts are used."""
    eval: HeldOut = None
    """Held-out prompts: a file, or a share of the training prompts between 0 and 1."""
    columns: dict[str, str] = Field({})
    """Columns of your data for preftune's fields, e.g. {prompt: question}."""
    ignore: list[str] = Field([])
    """Columns to ignore."""
    chat_template: str | None = None
    """Chat template to use instead of the tokenizer's: a .jinja file, or `dialogue`. It is saved with the model."""
    chat_template_kwargs: schema.TemplateArguments = Field({})
    """Arguments of the chat template in addition to the messages, e.g. {enable_thinking: false}."""
    as_chat: schema.AsChat = "auto"
    """Which text prompts to convert to chat messages. auto: HH-RLHF transcripts, if the model has a chat template.
    true: all; a text that is not a transcript becomes one user message. false: none."""
    system_message: Literal["template", "merge"] = "template"
    """How to render system messages. template: as the chat template does. merge: put their text before the next user
    message, for templates without a system message."""
    max_prompt_length: int = Field(512, ge=1)
    """Drop and count prompts with more tokens than this."""
    max_dropped: float = Field(0.2, ge=0, le=1)
    """Stop if more than this share of the rows is dropped."""


class ValueConfig(Section):
    kind: Literal["network", "head"] = "network"
    """network: a separate model with a scalar head; head: a linear map of the policy's last hidden states."""
    path: str | None = None
    """Folder of the model that the value network starts from, often the reward model. null: a copy of the policy with a
    head of zeros."""

    @model_validator(mode="after")
    def _no_path_with_head(self) -> ValueConfig:
        if self.kind == "head" and self.path:
            raise ValueError("value.path needs value.kind=network: a head starts with zeros")
        return self


class RolloutConfig(Section):
    prompts: int = Field(64, ge=1)
    """Prompts per step."""
    responses: int = Field(1, ge=1)
    """Responses per prompt, sampled at temperature 1, because the gradient is that of the sampled distribution."""
    max_new_tokens: int = Field(64, ge=1)
    """Maximum number of tokens per response."""
    missing_eos: Literal["keep", "stop"] = "keep"
    """What to do with a response that reached max_new_tokens. keep: reward it, less the penalty; stop: end the run."""
    missing_eos_penalty: float = Field(0.0, ge=0)
    """Subtract this from the reward of a response that reached max_new_tokens."""

    @model_validator(mode="after")
    def _no_penalty_with_stop(self) -> RolloutConfig:
        if self.missing_eos == "stop" and self.missing_eos_penalty:
            raise ValueError("missing_eos_penalty has no effect with missing_eos=stop; remove one of them")
        return self


class PPOParameters(Section):
    kl_coef: float = Field(0.05, ge=0)
    """Weight of the KL penalty (DPO's beta). With `kl_target`: its initial value."""
    kl_target: float | None = Field(None, gt=0)
    """Target KL in nats per response. `kl_coef` is adjusted to reach it. null: `kl_coef` stays fixed."""
    kl_horizon: int = Field(10_000, ge=1)
    """Number of responses over which kl_coef adapts. A step changes it by at most 0.2 * responses / horizon."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """How to penalise the KL to the reference, with d = log policy - log reference. k1: d is subtracted from the reward
    of each token. k2, k3: the KL of a token is a loss term, d^2 / 2 or exp(-d) - 1 + d, weighted with the ratio of the
    policy to the sampling policy; the KL of later tokens stays in the rewards. All three have the gradient of the
    KL."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount factor of later rewards."""
    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation. 1 uses the rewards only; 0 relies on the values most."""
    clip: float = Field(0.2, gt=0)
    """Clip the policy's ratio to the sampling policy to 1 +- clip."""
    value_clip: float | None = Field(0.2, gt=0)
    """Clip a new value to within this distance of the old one. null: no clipping."""
    value_coef: float = Field(0.5, gt=0)
    """Weight of the value loss."""
    epochs: int = Field(4, ge=1)
    """Passes over the responses of each step."""
    minibatches: int = Field(4, ge=1)
    """Optimizer updates per pass."""
    whiten_rewards: bool = False
    """Divide the scores of a step by their standard deviation, without changing their mean."""
    whiten_advantages: bool = True
    """Normalise the advantages of a step to mean 0 and variance 1."""


class PPOConfig(schema.TunedConfig):
    data: PromptConfig
    reward: str
    """Folder of a reward model, `implicit:POLICY,REFERENCE,BETA`, `judge:URL,MODEL`, `vader`, `file.py:function` with
    the signature (prompts, responses) -> rewards, or one of the controls `length`, `short` and `random`."""
    value: ValueConfig = ValueConfig()
    rollout: RolloutConfig = RolloutConfig()
    ppo: PPOParameters = PPOParameters()
    optim: schema.OptimConfig = schema.OptimConfig(lr=3e-6, schedule="constant", warmup=0)
    batch: schema.SlotConfig = schema.SlotConfig()
    best: schema.BestSection = None
    out: str = "runs/ppo"
    """The run folder. Rerun the same command to resume."""

    @model_validator(mode="after")
    def _best_needs_evaluations(self) -> PPOConfig:
        check_best(self.best, self.data.eval, self.train.eval_every)
        return self


class SampleConfig(Section):
    n: int = Field(8, ge=2)
    """Responses per prompt in each round."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most likely tokens whose probabilities add up to this value."""
    max_new_tokens: int = Field(64, ge=1)
    """Maximum number of tokens per response."""
    evaluation: int = Field(4, ge=1)
    """Responses per prompt in the evaluation of each round, sampled at temperature 1."""


class SelectConfig(Section):
    select: Literal["best-worst", "best-random", "all", "rso"] = "all"
    """Which preference pairs to make from the responses to a prompt, as in `preftune pairs`."""
    gap: float = Field(0.0, ge=0)
    """Minimum difference in reward between the responses of a pair."""
    soft: bool = True
    """Label each pair with the probability sigmoid(difference in reward)."""
    beta: float = Field(0.1, gt=0)
    """Temperature of the rejection sampling in rso."""


class StopConfig(Section):
    kl: float | None = Field(None, gt=0)
    """Stop if the KL to the first model exceeds this after a round, in nats per response. The result is the policy of
    the previous round."""
    diversity: float | None = Field(None, gt=0, le=1)
    """Stop if less than this share of the word pairs in the evaluation is distinct after a round. The result is the
    policy of the previous round."""
    gain: float | None = None
    """Stop if a round raises the reward by less than this. If the reward fell, the result is the policy of the previous
    round."""


PEOPLE = "people"
"""The reward of preftune iterate with which people compare the responses."""


class PeopleConfig(Section):
    pairs: int = Field(1, ge=1)
    """Pairs of responses per prompt that people compare, chosen at random."""
    votes: int = Field(1, ge=1)
    """Annotators who judge each pair."""
    soft: bool = False
    """Label each pair with the mean of its verdicts and keep ties, as preftune label --soft."""
    wait: bool = True
    """true: serve the page and wait for the verdicts. false: print the command that collects them, and stop with exit
    code 75; rerun preftune iterate after that command."""
    port: int = Field(0, ge=0, le=65535)
    """Port of the page. 0: a free one."""


class IterateConfig(schema.TunedConfig):
    data: PromptConfig
    reward: str
    """The reward, as in preftune ppo, or `people`: people compare the responses of each round in a browser."""
    people: PeopleConfig = PeopleConfig()
    rounds: int = Field(3, ge=1)
    """Rounds of sampling, rewarding, pairing, training and evaluation."""
    prompts: int | None = Field(None, ge=1)
    """Prompts per round. Each round continues where the previous one ended. null: all prompts in every round."""
    max_length: int = Field(1024, ge=2)
    """Maximum number of tokens in prompt and response together during training."""
    reference: Literal["fixed", "refreshed"] = "fixed"
    """Reference of each round. fixed: the first model; refreshed: the policy at the start of the round."""
    sample: SampleConfig = SampleConfig()
    pairs: SelectConfig = SelectConfig()
    loss: schema.Losses = Field({"name": "sigmoid", "beta": 0.1})
    """The loss, as in preftune dpo."""
    batch: schema.BatchConfig = schema.BatchConfig()
    lr_decay: float = Field(1.0, gt=0, le=1)
    """Multiply the learning rate by this after each round."""
    stop: StopConfig = StopConfig()
    out: str = "runs/iterate"
    """The run folder. Rerun the same command to resume after the last finished part."""

    @property
    def terms(self) -> list[schema.LossTerm]:
        return schema.terms_of(self.loss)

    @property
    def judged_by_people(self) -> bool:
        return self.reward == PEOPLE

    @model_validator(mode="after")
    def _people_or_reward(self) -> IterateConfig:
        if not self.judged_by_people and self.people != PeopleConfig():
            raise ValueError("people needs reward=people; remove the section people")
        if self.judged_by_people and self.stop.gain is not None:
            raise ValueError("stop.gain needs a reward, and with reward=people there is none; remove it")
        return self
