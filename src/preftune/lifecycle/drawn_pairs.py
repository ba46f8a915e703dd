"""Score a drawn set of pairs at about twelve steps of a run, for the figures of its report.

    drawn_pairs/pairs.json            the pairs: their texts, labels and lengths, and the reference's log-probs
    drawn_pairs/step-XXXXXXXX.json    the policy's log-probs of the pairs after a step (a reward model: its rewards)
    drawn_pairs/tokens.json           the rewards of the tokens of some pairs, after the last of these steps

Scoring draws no random numbers of the run and changes no weight. A resumed run writes the same files again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from preftune.chat.render import pieces_of
from preftune.config.schema import TrainConfig
from preftune.data.shapes import Shapes
from preftune.data.steps import order
from preftune.files import write_json
from preftune.lifecycle.task import ResponseTask
from preftune.model.generate import continuation
from preftune.model.memory import by_group, can_repeat, free_memory
from preftune.ranks.group import first
from preftune.train.run import Run
from preftune.types import Batch, Judgement, TokenGroup

FOLDER = "drawn_pairs"
#: When the pairs are scored, in 17ths of the run: more often at its start, where most changes happen.
MOMENTS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 17)
SHARE = 0.05  # of the work of training that scoring may cost
FEWEST = 24  # pairs
TOKEN_PAIRS = 8  # pairs whose tokens are shown
MAX_TEXT = 1200  # characters of a text
PASS_SHARE = 3  # forward and backward pass of an update, in forward passes


@dataclass(frozen=True, slots=True)
class DrawnPairs:
    """Groups with the pairs that are scored, and after which steps. `total` is the number of all pairs that could be
    drawn; `split` says what they are: held-out, or training pairs if none are held out."""

    groups: Sequence[TokenGroup]
    steps: frozenset[int]
    total: int
    split: str
    tokenizer: Any

    @property
    def pairs(self) -> list[tuple[int, Judgement]]:
        """Each pair as the index of its group and a judgement."""
        return [(index, judgement) for index, group in enumerate(self.groups) for judgement in group.judgements]


def draw_pairs(
    most: int, task: ResponseTask, visited: Sequence[TokenGroup], steps: int, train: TrainConfig, tokenizer: Any
) -> DrawnPairs | None:
    """Draw about `most` pairs of the held-out groups, else of the `visited` training groups. None without pairs.

    Fewer pairs are drawn, at fewer steps, if scoring them would cost more than SHARE of the run.
    """
    groups, split = (task.held_out, "held-out") if task.held_out else (visited, "training")
    if not most or not steps or task.loss.items != "pairs" or not groups:
        return None
    trained = float(Shapes.of(visited).responses_G.sum()) * train.epochs * PASS_SHARE * SHARE
    chosen: list[TokenGroup] = []
    pairs = responses = 0
    for index in order(len(groups), train.seed, 0):
        group = groups[index]
        if pairs and (pairs + len(group.judgements) > most or (responses * len(MOMENTS) > trained and pairs >= FEWEST)):
            break
        chosen.append(group)
        pairs, responses = pairs + len(group.judgements), responses + len(group.response_ids)
    if not pairs:
        return None
    moments = min(len(MOMENTS), max(3, int(trained / responses)))
    total = int(Shapes.of(groups).judgements_G.sum())
    return DrawnPairs(chosen, frozenset(moments_of(steps, moments)), total, split, tokenizer)


def moments_of(steps: int, number: int = len(MOMENTS)) -> list[int]:
    """Return after which of `steps` steps the pairs are scored: about `number` of them, with the first and the last."""
    share = [MOMENTS[round(i * (len(MOMENTS) - 1) / (number - 1))] / MOMENTS[-1] for i in range(number)]
    return sorted({round(steps * part) for part in share})


def score_final(task: ResponseTask, drawn: DrawnPairs | None, run: Run) -> None:
    """Score the pairs with the weights at the end of the run, if they are not those of the last scored step.

    Call it after the end of the run: it stopped early, or the weights of its best evaluation are loaded.
    """
    best, config = run.best, run.best_config
    step = best.step if best and config and config["final"] == "best" else run.last_step
    if drawn and (step != run.last_step or step not in drawn.steps):
        score_pairs(task, replace(drawn, steps=frozenset([step])), run, step)


@torch.no_grad()
def score_pairs(task: ResponseTask, drawn: DrawnPairs | None, run: Run, step: int) -> None:
    """Score the pairs after `step` and save the result. Reports if memory ran out or the disk is full."""
    if drawn is None or step not in drawn.steps:
        return
    try:
        values = by_group(_logps_of(task), drawn.groups, task.micro_batches)
    except (RuntimeError, MemoryError) as error:
        if not can_repeat(error):
            raise
        values = []
    if not values:
        free_memory()  # after the handler: the exception holds a reference to the memory
        run.display.say("the pairs for the report were not scored, because memory ran out. Set report_pairs=0.")
        return
    if not first():
        return
    with run.optional("the pairs for the report"):
        folder = run.folder / FOLDER
        pairs = _pairs_json(task, drawn, values)
        if step == 0 or not _same_pairs(folder / "pairs.json", pairs):
            for old in folder.glob("step-*.json"):  # a run that was extended draws other pairs
                old.unlink()
            write_json(folder / "pairs.json", pairs)
        sums = [value[0].tolist() for value in values]
        write_json(folder / f"step-{step:08d}.json", {"step": step, "logps": _sides(drawn, sums)})
        if not task.is_reward_model:
            write_json(folder / "tokens.json", _token_rewards(task, drawn, values))


def _same_pairs(path: Path, pairs: Mapping[str, Any]) -> bool:
    """Whether the file has these pairs."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        return bool(old["pairs"] == pairs["pairs"] and old["texts"] == pairs["texts"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _logps_of(task: ResponseTask) -> Any:
    """Return a function from a batch to the log-probs per response and per token, of the policy and of the reference.

    Without a reference, only those of the policy.
    """

    def compute(batch: Batch) -> tuple[torch.Tensor, ...]:
        measured = task.measure(batch)
        both = [measured.policy] if measured.reference is None else [measured.policy, measured.reference]
        sums = [part.sum_S.double().cpu() for part in both]
        return (*sums, *(part.token_N.double().cpu() for part in both if not task.is_reward_model))

    return compute


def _sides(drawn: DrawnPairs, by_response: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the values of the better and of the worse response of each pair."""
    return [[by_response[g][j.better], by_response[g][j.worse]] for g, j in drawn.pairs]


def _pairs_json(task: ResponseTask, drawn: DrawnPairs, values: Sequence[tuple[torch.Tensor, ...]]) -> dict[str, Any]:
    """Return what stays the same over the run: texts (by number), pairs, and the reference's log-probs."""
    texts: dict[str, int] = {}

    def number(text: str, *, from_end: bool = False) -> int:
        if len(text) > MAX_TEXT:
            text = f"... {text[-MAX_TEXT:]}" if from_end else f"{text[:MAX_TEXT]} ..."
        return texts.setdefault(text, len(texts))

    pairs = []
    for index, judgement in drawn.pairs:
        group = drawn.groups[index]
        prompt = group.prompt_ids.tolist()
        before = drawn.tokenizer.decode(prompt, skip_special_tokens=True)
        sides = judgement.better, judgement.worse
        shown = [continuation(drawn.tokenizer, prompt, before, group.response_ids[s].tolist()) for s in sides]
        pairs.append(
            {
                "texts": [number(before, from_end=True), *map(number, shown)],
                "label": judgement.probability,
                "tokens": [len(group.scored_ids[side]) for side in sides],
                "origin": group.origin,
                "source": task.held_out_sources.get(group.source, "") or task.sources.get(group.source, ""),
            }
        )
    reference = None
    if len(values[0]) > 2:  # log-probs of policy and reference, each per response and per token
        reference = _sides(drawn, [value[1].tolist() for value in values])
    kinds = {"kind": "reward" if task.is_reward_model else "log-prob", "beta": task.loss.beta}
    drawn_of = {"split": drawn.split, "total": drawn.total}
    return {**kinds, **drawn_of, "texts": list(texts), "pairs": pairs, "reference": reference}


def _token_rewards(task: ResponseTask, drawn: DrawnPairs, values: Sequence[tuple[torch.Tensor, ...]]) -> Any:
    """Return the tokens of some pairs with their rewards, beta times the log-ratio: those in the most wrong order, and
    the first ones."""
    sums = [value[0] - (value[1] if len(value) > 2 else 0.0) for value in values]
    margins = [float(sums[g][j.better] - sums[g][j.worse]) for g, j in drawn.pairs]
    by_margin = sorted(range(len(margins)), key=lambda pair: margins[pair])
    chosen = list(dict.fromkeys([*by_margin[: TOKEN_PAIRS // 2], *range(TOKEN_PAIRS)]))[:TOKEN_PAIRS]
    rows = []
    for pair in (index for index in chosen if index < len(margins)):
        index, judgement = drawn.pairs[pair]
        group, value = drawn.groups[index], values[index]
        token_N = value[2] - value[3] if len(value) > 2 else value[1]
        per_response = torch.split(token_N * task.loss.beta, [len(ids) for ids in group.scored_ids])
        sides = []
        for side in (judgement.better, judgement.worse):
            texts = pieces_of(drawn.tokenizer, group.prompt_ids.tolist(), group.response_ids[side].tolist())
            scored = group.masks[side].tolist() if group.masks else [True] * len(texts)
            rewards = iter(per_response[side].tolist())
            sides.append(
                [[text, next(rewards) if is_scored else 0.0] for text, is_scored in zip(texts, scored, strict=True)]
            )
        rows.append({"pair": pair, "chosen": sides[0], "rejected": sides[1]})
    return rows
