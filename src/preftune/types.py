"""The records that flow through the system. They hold data and have no behaviour beyond `to(device)`.

    text      PreferenceGroup      one prompt, n responses, the judgements between them
    ids       TokenGroup           the same, tokenised; all responses follow the very same prompt ids
    tensors   Batch                groups laid out for one forward pass
    numbers   Logps                what a model says about each response
    result    LossOutput           sums, never means: the loop divides by the count of the whole step

Shape letters: T token slots, N scored tokens, S responses, P judgements (pairs), G groups, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

from annotated_types import Ge, Gt, Le, Lt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

    Ids: TypeAlias = npt.NDArray[np.int32]

# Ranges for the parameters of losses; the config reader enforces them.
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
BelowHalf = Annotated[float, Ge(0), Lt(0.5)]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    `extra` holds the other fields of the message (reasoning_content, tool_calls, name, ...), sorted by name, each
    value as JSON text. The chat template receives them; see `message_dict`.
    """

    role: str
    content: str
    extra: tuple[tuple[str, str], ...] = ()


Text: TypeAlias = "str | tuple[Message, ...]"


@dataclass(frozen=True, slots=True)
class Judgement:
    """Response `better` was preferred to response `worse` (indexes into the group's responses).

    weight       how many judgements this one counts for
    probability  that `better` really is the better one (a soft label)
    margin       by how much, on the judge's own scale
    """

    better: int
    worse: int
    weight: float = 1.0
    probability: float = 1.0
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class PreferenceGroup:
    """One prompt, its responses and what is known about them, still text.

    A preference pair has two responses and one judgement, a demonstration one response and none.
    `labels` (+1 desirable, -1 undesirable), `ranks` (1 is best) and `ended` have one entry a response, or none at
    all. A response that has not `ended` was cut off when it was sampled: it gets no EOS.
    `origin` is file:line, for messages.
    """

    prompt: Text
    responses: tuple[Text, ...]
    judgements: tuple[Judgement, ...] = ()
    labels: tuple[int, ...] = ()
    ranks: tuple[float, ...] = ()
    ended: tuple[bool, ...] = ()
    origin: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class TokenGroup:
    """A PreferenceGroup in token ids. Every response token is scored, so each response has at least one."""

    prompt_ids: Ids
    response_ids: tuple[Ids, ...]
    judgements: tuple[Judgement, ...] = ()
    labels: tuple[int, ...] = ()
    ranks: tuple[float, ...] = ()
    origin: str = ""

    @property
    def tokens(self) -> int:
        """Tokens as the data holds them: the prompt once for every response."""
        return sum(len(self.prompt_ids) + len(ids) for ids in self.response_ids)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longest response: positions that the model needs."""
        return len(self.prompt_ids) + max(map(len, self.response_ids))


@dataclass(frozen=True, slots=True)
class Judged:
    """What is known about the S responses of a batch and the P judgements between them.

    label_S is +1, -1, or 0 where there is no label: a mismatched response, which only estimates a baseline
    (see losses.unpaired.kto), or data without labels.
    rank_S is 0 where no rank is known.
    """

    better_P: Tensor
    worse_P: Tensor
    weight_P: Tensor
    probability_P: Tensor
    margin_P: Tensor
    label_S: Tensor
    rank_S: Tensor
    group_S: Tensor

    def to(self, device: torch.device) -> Judged:
        return Judged(**{f.name: sent(getattr(self, f.name), device) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class Rows:
    """Layout: one padded row of `width` token slots for each response, the prompt repeated in every row."""

    rows: int
    width: int


class Segment(NamedTuple):
    """Slots [begin, end) of a packed row, a sequence or the rest of one that began with [prefix_begin, prefix_end).

    A token of a segment sees the whole prefix, then its own segment up to itself. Without prefix both ends are 0.
    """

    begin: int
    end: int
    prefix_begin: int = 0
    prefix_end: int = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """Layout: one row of T slots, cut into segments that do not see each other; padding, if any, is the last one.

    Shared prompts: a group lies as [prompt | r1 | r2 | ... | rn]; [prompt | r1] is a segment, and each other response
    is one with the prompt as its prefix. Unshared: every [prompt | response] is a segment.
    """

    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups laid out on T token slots; nothing outside `model` can tell which layout was used.

    read_N    slot whose hidden state predicts scored token n (a shared prompt's last slot is read by every response)
    target_N  that token
    length_S  scored tokens of each response; the tokens of one response are adjacent in N, in order
    """

    ids_T: Tensor
    positions_T: Tensor
    layout: Rows | Packed
    read_N: Tensor
    target_N: Tensor
    length_S: Tensor
    judged: Judged
    groups: tuple[TokenGroup, ...]

    def to(self, device: torch.device) -> Batch:
        moved = ("ids_T", "positions_T", "read_N", "target_N", "length_S")
        tensors: dict[str, Any] = {name: sent(getattr(self, name), device) for name in moved}
        return replace(self, judged=self.judged.to(device), **tensors)


@dataclass(frozen=True, slots=True)
class Logps:
    """Log-probs of S responses under one model, in fp32.

    token_N  one per scored token
    sum_S    summed over each response
    extra    per-response sums of other token statistics that a loss asked for (model.logprobs.STATISTICS)
    """

    token_N: Tensor
    sum_S: Tensor
    length_S: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def detach(self) -> Logps:
        """The same without gradient and extras."""
        return Logps(self.token_N.detach(), self.sum_S.detach(), self.length_S)


class PairLogps(NamedTuple):
    """Summed log-probs and lengths of the two responses of P judgements. All (P,) float32."""

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor


class Pair(NamedTuple):
    """Any other quantity of the two responses of P judgements."""

    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True, slots=True)
class LossOutput:
    """`loss_sum` is a sum over `count` items, never a mean; `metrics` are (sum, count) pairs, detached."""

    loss_sum: Tensor
    count: Tensor
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def content(text: Text) -> str:
    """The words of a text or of all messages of a chat."""
    return text if isinstance(text, str) else "\n".join(message.content for message in text)


def as_json(text: Text) -> Any:
    """A text as it is, a chat as a list of {role, content, ...}."""
    return text if isinstance(text, str) else [message_dict(m) for m in text]


def message_dict(message: Message) -> dict[str, Any]:
    """A message as transformers and chat templates take it: role, content and the other fields it has."""
    return {
        "role": message.role,
        "content": message.content,
        **{name: json.loads(value) for name, value in message.extra},
    }


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. A GPU is not waited for: what lies in ordinary memory is taken before the call returns."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def plain(record: Any) -> dict[str, Any]:
    """A flat record as a dict, for writing."""
    return {f.name: getattr(record, f.name) for f in fields(record)}
