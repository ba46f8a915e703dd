"""The data classes that all parts of preftune share, from text to loss.

    text      PreferenceGroup      one prompt, n responses and the judgements between them
    ids       TokenGroup           the same, tokenised; all responses share one sequence of prompt ids
    tensors   Batch                groups arranged in memory for one forward pass
    numbers   Logps                log-probs of each response under one model
    result    LossOutput           sums, not means: the training loop divides by the count of the whole step

Shape letters: T token slots, N scored tokens, S responses, P judgements (pairs), G groups, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

from annotated_types import Ge, Gt, Le, Lt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

    Ids: TypeAlias = npt.NDArray[np.int32]
    Mask: TypeAlias = npt.NDArray[np.bool_]

# Value ranges for parameters of losses. `resolve.bind` checks them.
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
BelowHalf = Annotated[float, Ge(0), Lt(0.5)]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    `extra` holds the other fields of the message (reasoning_content, tool_calls, name, ...) as pairs of name and JSON
    text, sorted by name. They are passed to the chat template; see `message_dict`.
    """

    role: str
    content: str
    extra: tuple[tuple[str, str], ...] = ()


Text: TypeAlias = "str | tuple[Message, ...]"


@dataclass(frozen=True, slots=True)
class Judgement:
    """Response `better` is preferred to response `worse` (indices into the group's responses).

    weight       the number of judgements that this one counts as
    probability  the probability that `better` is the better response (a soft label)
    margin       how much better it is, on the scale of the data
    """

    better: int
    worse: int
    weight: float = 1.0
    probability: float = 1.0
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class PreferenceGroup:
    """One prompt with its responses as text, and the judgements, labels or ranks of the responses.

    A preference pair has two responses and one judgement; a demonstration has one response and no judgement.
    `labels` (+1 desirable, -1 undesirable), `ranks` (1 is best) and `ended` are empty or have one entry per response.
    A response that has not `ended` was cut off by the token limit of sampling, so no EOS is added to it.
    `origin` is "file:line", for messages. `source` is the number of the source in a mixture.
    """

    prompt: Text
    responses: tuple[Text, ...]
    judgements: tuple[Judgement, ...] = ()
    labels: tuple[int, ...] = ()
    ranks: tuple[float, ...] = ()
    ended: tuple[bool, ...] = ()
    origin: str = ""
    source: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TokenGroup:
    """A PreferenceGroup as token ids.

    `masks` is empty if all response tokens are scored. Otherwise it has one mask per response, which is true for its
    scored tokens; the others are context. The last token of every response is scored.
    """

    prompt_ids: Ids
    response_ids: tuple[Ids, ...]
    judgements: tuple[Judgement, ...] = ()
    labels: tuple[int, ...] = ()
    ranks: tuple[float, ...] = ()
    origin: str = ""
    masks: tuple[Mask, ...] = ()
    source: int = 0

    @property
    def scored_ids(self) -> tuple[Ids, ...]:
        """The ids of the scored tokens of each response."""
        if not self.masks:
            return self.response_ids
        return tuple(ids[mask] for ids, mask in zip(self.response_ids, self.masks, strict=True))

    def with_only(self, responses: Sequence[int], **changes: Any) -> TokenGroup:
        """Return the group with only these responses. `changes` must replace judgements, labels and ranks."""
        ids, masks = (
            tuple(self.response_ids[i] for i in responses),
            tuple(self.masks[i] for i in responses if self.masks),
        )
        return replace(self, response_ids=ids, masks=masks, **changes)

    @property
    def tokens(self) -> int:
        """The number of tokens, with the prompt counted once per response."""
        return sum(len(self.prompt_ids) + len(ids) for ids in self.response_ids)

    @property
    def longest(self) -> int:
        """The number of tokens of the prompt with the longest response: the context that the model needs."""
        return len(self.prompt_ids) + max(map(len, self.response_ids))


@dataclass(frozen=True, slots=True)
class Judged:
    """The labels and ranks of the S responses of a batch, and the P judgements between them.

    label_S  +1, -1, or 0 for no label; a mismatched response (see losses.unpaired.kto) has none
    rank_S   0 without a rank
    group_S  index of the response's group in the batch
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
        return Judged(**{f.name: to_device(getattr(self, f.name), device) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class Rows:
    """Layout with one padded row of `width` token slots per response; the prompt is repeated in every row."""

    rows: int
    width: int


class Segment(NamedTuple):
    """Slots [begin, end) of a packed row: a sequence, or the continuation of the prefix [prefix_begin, prefix_end).

    A token attends to the whole prefix and to its own segment up to itself. Without a prefix, both bounds are 0.
    """

    begin: int
    end: int
    prefix_begin: int = 0
    prefix_end: int = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """Layout with one row of T slots, divided into segments that do not attend to each other (except to a prefix).

    With shared prompts, a group is [prompt | r1 | r2 | ... | rn]: [prompt | r1] is a segment, and every other response
    is one with the prompt as its prefix. Otherwise each [prompt | response] is a segment. Padding is the last segments.
    """

    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups arranged on T token slots. Only `model` uses the layout; losses see the same values for every layout.

    read_N    slot whose hidden state predicts scored token n (all responses read the last slot of a shared prompt)
    target_N  id of scored token n
    length_S  number of scored tokens of each response; the tokens of one response are adjacent in N and in order
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
        tensors: dict[str, Any] = {name: to_device(getattr(self, name), device) for name in moved}
        return replace(self, judged=self.judged.to(device), **tensors)


@dataclass(frozen=True, slots=True)
class Logps:
    """Log-probs of S responses under one model, in fp32.

    token_N   log-prob of each scored token
    sum_S     sum over each response
    length_S  number of scored tokens of each response
    extra     per-response sums of other token statistics that the loss uses (losses.objective.STATISTICS)
    """

    token_N: Tensor
    sum_S: Tensor
    length_S: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def detach(self) -> Logps:
        """Return a copy without gradient and without `extra`."""
        return Logps(self.token_N.detach(), self.sum_S.detach(), self.length_S)


class PairLogps(NamedTuple):
    """Summed log-probs and lengths of the two responses of P judgements. All (P,) float32."""

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor


class Pair(NamedTuple):
    """Any other quantity of the two responses of P judgements: (P,), or (P, L) for one value per token."""

    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True, slots=True)
class LossOutput:
    """`loss_sum` is the sum over `count` items, not the mean; `metrics` are detached (sum, count) pairs."""

    loss_sum: Tensor
    count: Tensor
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def masks_of(group: TokenGroup) -> tuple[Mask, ...]:
    """Return the masks of all responses, which are all true for a group without masks."""
    import numpy as np  # not needed to read a config

    return group.masks or tuple(np.ones(len(ids), dtype=np.bool_) for ids in group.response_ids)


def content(text: Text) -> str:
    """Return a text unchanged, or the contents of all messages of a chat, separated by newlines."""
    return text if isinstance(text, str) else "\n".join(message.content for message in text)


def as_json(text: Text) -> Any:
    """Return a text unchanged, or a chat as a list of {role, content, ...}."""
    return text if isinstance(text, str) else [message_dict(m) for m in text]


def message_dict(message: Message) -> dict[str, Any]:
    """Return a message as transformers and chat templates expect it: role, content and the fields in `extra`."""
    extra = {name: json.loads(value) for name, value in message.extra}
    return {"role": message.role, "content": message.content, **extra}


TOOLS = "tools"
"""Field of a prompt's message with the JSON schemas of the tools that the model may call."""


def split_tools(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[Any]]:
    """Return the messages without the field `tools`, and the tools; an empty list without tools.

    Raises ValueError for a field that is not a list of objects, which may be JSON text.
    """
    if not any(name == TOOLS for message in messages for name, _ in message.extra):
        return tuple(messages), []
    tools: list[Any] = []
    result = []
    for message in messages:
        for name, text in message.extra:
            if name == TOOLS:
                value = json.loads(text)
                value = json.loads(value) if isinstance(value, str) else value
                if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
                    raise ValueError("the tools of a message must be a list of JSON schemas")
                tools += value
        result.append(replace(message, extra=tuple(entry for entry in message.extra if entry[0] != TOOLS)))
    return tuple(result), tools


ARGUMENTS = "chat_template_kwargs"
"""Field of a prompt's message with arguments of the chat template for this prompt."""


def split_arguments(messages: Sequence[Message]) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """Return the messages without the field `chat_template_kwargs`, and these arguments; {} without the field.

    Raises ValueError for a field that is not an object.
    """
    if not any(name == ARGUMENTS for message in messages for name, _ in message.extra):
        return tuple(messages), {}
    arguments: dict[str, Any] = {}
    result = []
    for message in messages:
        for name, text in message.extra:
            if name == ARGUMENTS:
                value = json.loads(text)
                if not isinstance(value, dict):
                    raise ValueError("chat_template_kwargs of a message must be an object")
                arguments |= value
        result.append(replace(message, extra=tuple(entry for entry in message.extra if entry[0] != ARGUMENTS)))
    return tuple(result), arguments


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move `tensor` to `device`, without waiting for a GPU.

    A copy from pageable memory may wait until the GPU has finished its work. So the tensor is pinned first, which is
    cheap, because torch reuses pinned memory, and does so only after the copy has finished.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def plain(record: Any) -> dict[str, Any]:
    """Return a flat data class as a dict."""
    return {f.name: getattr(record, f.name) for f in fields(record)}
