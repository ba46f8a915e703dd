"""Save the responses of a run's evaluations to its folder, for the report and for `preftune pairs`.

    samples/step-XXXXXXXX.jsonl   prompt, responses, ended, tokens, origin: the format of `preftune sample`
    samples/data.jsonl            the responses of the data to the same prompts

A resumed run writes the same files again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from preftune.files import write_rows
from preftune.model.generate import Sampled, continuation
from preftune.types import TokenGroup

MOST = 32  # prompts whose responses are saved


def save_samples(folder: Path, step: int, tokenizer: Any, samples: Sequence[Sampled]) -> None:
    """Write the responses of an evaluation at `step` to the run folder. Raises StorageError."""
    rows = [
        {
            "prompt": prompt_text(tokenizer, sampled.group),
            "responses": list(sampled.texts),
            "ended": list(sampled.ended),
            "tokens": [len(ids) for ids in sampled.group.response_ids],
        }
        for sampled in samples[:MOST]
    ]
    write_rows(folder / "samples" / f"step-{step:08d}.jsonl", rows)


def save_data_responses(folder: Path, tokenizer: Any, groups: Sequence[TokenGroup]) -> None:
    """Write the data's responses to the prompts of an evaluation, with what they are. Raises StorageError."""
    rows = []
    for group in groups[:MOST]:
        prompt = group.prompt_ids.tolist()
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        responses = [
            {
                "kind": kind,
                "text": continuation(tokenizer, prompt, before, group.response_ids[index].tolist()),
                "tokens": len(group.response_ids[index]),
            }
            for kind, index in kinds_of(group)
        ]
        rows.append({"prompt": prompt_text(tokenizer, group), "origin": group.origin, "responses": responses})
    write_rows(folder / "samples" / "data.jsonl", rows)


def kinds_of(group: TokenGroup) -> Iterator[tuple[str, int]]:
    """Yield what each response of the data is, and its index. Of several judgements, only the first counts."""
    if group.judgements:
        yield "chosen", group.judgements[0].better
        yield "rejected", group.judgements[0].worse
        return
    for index in range(len(group.response_ids)):
        if group.labels:
            if group.labels[index]:  # 0: a response to another prompt, which some losses add
                yield ("desirable" if group.labels[index] > 0 else "undesirable"), index
        elif group.ranks:
            yield f"rank {group.ranks[index]:g}", index
        else:
            yield "response", index


def prompt_text(tokenizer: Any, group: TokenGroup) -> str:
    """Return the text of a prompt with its special tokens, except BOS at its beginning."""
    text = str(tokenizer.decode(group.prompt_ids.tolist()))
    bos = tokenizer.bos_token
    return text.removeprefix(bos).removeprefix(" ") if bos and text.startswith(bos) else text
