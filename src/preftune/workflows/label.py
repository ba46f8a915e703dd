"""preftune label: people compare responses on a page, and their verdicts become preference data.

    prefs.jsonl            one row per pair with a preference, for preftune dpo; written again while people judge
    prefs.verdicts.jsonl   the journal: every verdict, on disk before the page shows the next pair

The journal is all that is needed to resume. Rerun the same command to continue with the first pair without a verdict.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from shlex import quote
from typing import Any

from preftune import stop
from preftune.config.data import plain_paths
from preftune.config.schema import DataConfig
from preftune.data.read_groups import read_groups
from preftune.errors import ConfigError, DataError, require_writable
from preftune.files import write_rows
from preftune.formats.account import Account
from preftune.formats.json_cells import decode_cells
from preftune.formats.parsers import Reading
from preftune.formulas import generator_of, win
from preftune.measures.win_rate import Match, bootstrap, sides, win_rate
from preftune.people.pairs import Pair
from preftune.people.server import Site, serving
from preftune.people.verdicts import VALUES, Verdicts, summary_lines
from preftune.sources.read import read
from preftune.train.display import Display
from preftune.types import as_json, content
from preftune.workflows.data_section import read_rows
from preftune.workflows.pairs import Samples, read_samples
from preftune.workflows.verdicts import words

LOOKED_AT = 20  # rows from which samples are recognised
WRITE_S = 2.0  # between two times that the preference data are written while people judge
POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """The settings of a label command.

    data       one file of samples, two files of samples to compare, or preference data to label again
    annotator  the only annotator; None: the page asks for a name
    per_row    pairs from each row of samples; None: all
    votes      annotators who judge each pair; None: every annotator judges every pair
    soft       label each pair with the mean of its verdicts, and keep ties
    """

    data: DataConfig
    annotator: str | None = None
    per_row: int | None = 1
    votes: int | None = None
    soft: bool = False
    seed: int = 0
    port: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The pairs to judge. `left_out` counts rows and pairs that are not judged; `names` are the two files, if any."""

    pairs: list[Pair]
    left_out: Counter[str]
    names: tuple[str, ...] = ()


@dataclass(slots=True)
class Outcome:
    """The rows of the preference data, and how many pairs have no preference, by reason."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def run(options: LabelOptions, out: Path, display: Display, page: bool = True) -> bool:
    """Serve the page until every pair has its verdicts. Return whether that is so.

    With page=False, only write the preference data of the saved verdicts.
    """
    require_own_file(options, out)
    comparison = read_pairs(options, display)
    with Verdicts(journal_of(out), comparison.pairs, options.seed, options.votes) as verdicts:
        if verdicts.repaired:
            display.say(
                f"{verdicts.path}: removed {verdicts.repaired} bytes of an incomplete last line, "
                "which an interruption had left; no complete verdict is lost"
            )
        if page and is_open(verdicts, options.annotator):
            collect(verdicts, options, out, display)
        report(verdicts, comparison, options.soft, out, display)
        return verdicts.missing() == 0


def require_own_file(options: LabelOptions, out: Path) -> None:
    """Raise ConfigError if `out` is a file that this command has not written, so that no data are overwritten."""
    train = plain_paths(options.data.train, "label")
    for source in [train] if isinstance(train, str) else train:
        if Path(source).exists() and out.exists() and out.samefile(source):
            raise ConfigError("the file is also the input", where=f"--out {out}", fix="choose a different --out")
    if out.exists() and out.is_file() and out.stat().st_size and not journal_of(out).exists():
        raise ConfigError(
            "the file exists, and preftune label has not written it",
            where=f"--out {out}",
            why=f"it has no journal of verdicts ({journal_of(out)}), and it would be overwritten",
            fix="choose a different --out, or remove the file",
        )
    require_writable(out)


def journal_of(out: Path) -> Path:
    """Return the journal of the verdicts for the preference data `out`: prefs.jsonl has prefs.verdicts.jsonl."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.verdicts.jsonl")


def command_for(options: LabelOptions, out: Path) -> str:
    """Return the command that collects the verdicts of these options."""
    source = plain_paths(options.data.train, "label")
    words = ["preftune", "label", *([source] if isinstance(source, str) else source), "--out", str(out)]
    words += ["--pairs", str(options.per_row or "all")] * (options.per_row != 1)
    words += ["--votes", str(options.votes)] * (options.votes is not None)
    words += ["--soft"] * options.soft + ["--seed", str(options.seed)] * (options.seed != 0)
    return shlex.join(words)


def is_open(verdicts: Verdicts, annotator: str | None) -> bool:
    """Return whether there is something to judge: for this annotator, or for anyone."""
    return verdicts.remaining(annotator) > 0 if annotator else verdicts.missing() > 0


def collect(verdicts: Verdicts, options: LabelOptions, out: Path, display: Display) -> None:
    """Serve the page until somebody presses Finish. A stop request ends it, and raises StopRequest if pairs remain."""
    site, written, waited = Site(verdicts, options.annotator), 0, 0.0
    loud = Display(console=display.console)  # also after --quiet, because nobody can judge without the address
    with serving(site, options.port) as url:
        total, done = len(verdicts.pairs), len(verdicts.pairs) - verdicts.missing()
        loud.say(f"{total} pairs to judge, {done} of them judged. Open this address in a browser on this machine:")
        loud.say(f"  {url}")
        loud.say("Every verdict is saved at once. Press Finish on the page, or Ctrl-C to stop and resume later.")
        try:
            while not site.finished.wait(POLL_S):
                waited += POLL_S
                if waited >= WRITE_S and verdicts.changes != written:
                    written, waited = verdicts.changes, 0.0
                    write_rows(out, preferences(verdicts, options.soft).rows)
        except KeyboardInterrupt:
            with stop.deferred():
                write_rows(out, preferences(verdicts, options.soft).rows)
            if is_open(verdicts, options.annotator):
                left = verdicts.remaining(options.annotator) if options.annotator else verdicts.missing()
                display.say(f"{len(verdicts.pairs) - left} of {len(verdicts.pairs)} pairs judged; all verdicts saved")
                raise
    if site.error:
        raise site.error


def report(verdicts: Verdicts, comparison: Comparison, soft: bool, out: Path, display: Display) -> None:
    """Write the preference data, and print what people did and how well they agree."""
    outcome = preferences(verdicts, soft)
    write_rows(out, outcome.rows)
    for line in [*summary_lines(verdicts), *win_rate_lines(verdicts, comparison), *label_lines(verdicts)]:
        display.say(line)
    left_out = counts(outcome.left_out)
    display.say(
        f"done: {out}: {len(outcome.rows):,} preference pairs"
        + (f"; not used: {left_out}" if left_out else "")
        + f". Next: preftune dpo data.train={quote(str(out))}"
    )


def preferences(verdicts: Verdicts, soft: bool) -> Outcome:
    """Return the preference data: one row for each pair on which people prefer one response.

    The mean of the verdicts is 1 if all prefer the first response and 0 if all prefer the second; a tie counts 1/2 and
    a skip does not count. A mean above 1/2 prefers the first response. At exactly 1/2 the pair is a tie and is left
    out. With `soft`, the mean becomes the probability of the judgement, and ties are kept with the probability 1/2.
    """
    judged = {row["pair"] for rows in verdicts.judged().values() for row in rows.values()}
    outcome = Outcome()
    for key, labels in verdicts.by_pair().items():
        if not labels:
            outcome.left_out["skipped" if key in judged else "not judged"] += 1
            continue
        mean = sum(VALUES[label] for label in labels) / len(labels)
        if mean == 0.5 and not soft:
            undecided = all(VALUES[label] == 0.5 for label in labels)
            outcome.left_out["tied" if undecided else "tied because annotators disagree"] += 1
            continue
        better, worse = (0, 1) if mean >= 0.5 else (1, 0)
        share = max(mean, 1 - mean)
        judgement = {"better": better, "worse": worse, **({"probability": share} if soft and share < 1 else {})}
        pair = verdicts.pairs[key]
        outcome.rows.append(
            {
                "prompt": as_json(pair.prompt),
                "responses": [as_json(pair.first), as_json(pair.second)],
                "ended": list(pair.ended),
                "judgements": [judgement],
            }
        )
    return outcome


def win_rate_lines(verdicts: Verdicts, comparison: Comparison) -> list[str]:
    """Describe how often people prefer the first of two files of samples, with a 95 % interval over pairs."""
    matches = []
    for key, labels in verdicts.by_pair().items():
        if comparison.names and labels:
            pair, mean = verdicts.pairs[key], sum(VALUES[label] for label in labels) / len(labels)
            matches.append(Match(mean, None, words(content(pair.first)), words(content(pair.second))))
    if not matches:
        return []
    rate, (ours, other) = win_rate(matches), comparison.names
    return [
        f"{ours} against {other}: win rate {rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%}), "
        f"{rate.wins} won, {rate.ties} tied, {rate.losses} lost; {rate.length_adjusted:.1%} at equal length; "
        f"{rate.words:.0f} against {rate.other_words:.0f} words"
    ]


def label_lines(verdicts: Verdicts) -> list[str]:
    """Describe how often people agree with the labels or scores of the file, a tie counting one half."""
    agreeing = []
    for key, labels in verdicts.by_pair().items():
        label = verdicts.pairs[key].label
        if label is not None and labels:
            mean = sum(VALUES[one] for one in labels) / len(labels)
            agreeing.append(float(win((mean - 0.5) * (label - 0.5))))
    if not agreeing:
        return []
    import numpy as np

    low, high = bootstrap(np.array(agreeing))
    share = sum(agreeing) / len(agreeing)
    return [f"agreement with the labels of the file: {share:.1%} ({low:.1%} to {high:.1%}) of {len(agreeing)} pairs"]


def read_pairs(options: LabelOptions, display: Display) -> Comparison:
    """Read the pairs to judge, and print the account of rows and pairs. Raises DataError if there is none."""
    train, stated = plain_paths(options.data.train, "label"), options.data.model_fields_set - {"train"}
    sources = [train] if isinstance(train, str) else list(train)
    if stated and (len(sources) > 1 or (options.data.format == "auto" and has_samples(sources[0]))):
        what = f"samples are read as preftune sample writes them, without data.{sorted(stated)[0]}"
        raise ConfigError(what, where=sources[0], fix="remove the setting")
    if len(sources) > 1:
        comparison = side_by_side(sources, options, display)
    elif options.data.format == "auto" and has_samples(sources[0]):
        account = Account(sources[0], "samples")
        comparison = pairs_of_samples(read_samples(sources[0], account), options)
        display.say("\n".join(account.lines()))
    else:
        groups, account = read_rows(read_groups, options.data)
        display.say("\n".join(account.lines()))
        comparison = distinct(pairs_with_labels(groups))
    left_out = counts(comparison.left_out)
    if left_out:
        display.say(f"  not judged: {left_out}")
    if not comparison.pairs:
        raise DataError(
            "there is no pair to judge",
            where=", ".join(sources),
            why=f"not judged: {left_out}" if left_out else "no row has two responses",
            fix="sample two or more responses per prompt (preftune sample --n 2), or pass two files of samples",
        )
    return comparison


def counts(reasons: Counter[str]) -> str:
    """Describe counts by reason."""
    return ", ".join(f"{number:,} {why}" for why, number in reasons.items())


def has_samples(source: str) -> bool:
    """Return whether the first rows are those of preftune sample: a list of responses without judgements."""
    rows = [row.value for row in islice(decode_cells(read(source), Reading()), LOOKED_AT) if not row.fault]
    return bool(rows) and all(isinstance(row.get("responses"), list) and "judgements" not in row for row in rows)


def pairs_of_samples(rows: Sequence[Samples], options: LabelOptions) -> Comparison:
    """Return `per_row` random pairs of different responses from each row, the same for the same seed."""
    pairs: list[Pair] = []
    left_out = Counter[str]()
    for row in rows:
        texts = dict(zip(reversed(row.texts), range(len(row.texts) - 1, -1, -1), strict=True))  # first of equal texts
        every = list(combinations(sorted(texts.values()), 2))
        if not every:
            left_out["prompts with fewer than two different responses"] += 1
            continue
        order = generator_of(f"label {options.seed} {as_json(row.prompt)!r}").permutation(len(every))
        for index in sorted(order[: options.per_row].tolist()):
            i, j = every[index]
            label = float(win(row.scores[i] - row.scores[j])) if row.scores else math.nan
            known_label = None if math.isnan(label) else label
            pairs.append(pair_of(row, i, row, j, known_label))
    comparison = distinct(iter(pairs))
    return Comparison(comparison.pairs, left_out + comparison.left_out)


def pair_of(ours: Samples, i: int, other: Samples, j: int, label: float | None = None) -> Pair:
    """Return the pair of response i of one row and response j of another row with the same prompt."""
    return Pair(ours.prompt, ours.texts[i], other.texts[j], (ours.ended[i], other.ended[j]), ours.origin, label)


def side_by_side(sources: Sequence[str], options: LabelOptions, display: Display) -> Comparison:
    """Return the pairs of two files of samples: responses of the same index to the same prompt."""
    if len(sources) != 2 or not all(map(has_samples, sources)):
        raise DataError(
            f"cannot compare {len(sources)} files" if len(sources) != 2 else "the two files are not both samples",
            where=", ".join(sources),
            fix="pass one file, or two files that preftune sample wrote for the same prompts",
        )
    rows: list[dict[tuple[str, int], Samples]] = []
    for source in sources:
        account, repeats = Account(source, "samples"), Counter[str]()
        by_prompt: dict[tuple[str, int], Samples] = {}
        for row in read_samples(source, account):
            prompt = repr(as_json(row.prompt))
            by_prompt[prompt, repeats[prompt]] = row
            repeats[prompt] += 1
        rows.append(by_prompt)
        display.say("\n".join(account.lines()))
    left_out, pairs = Counter[str](), list[Pair]()
    for name, here, there in ((sources[0], rows[0], rows[1]), (sources[1], rows[1], rows[0])):
        if alone := len(here.keys() - there.keys()):
            left_out[f"prompts that only {name} has"] = alone
    for key, ours in rows[0].items():
        other = rows[1].get(key)
        for i in range(min(len(ours.texts), len(other.texts), options.per_row or len(ours.texts)) if other else 0):
            if other is not None and ours.texts[i] == other.texts[i]:
                left_out["pairs of identical responses"] += 1
            elif other is not None:
                pairs.append(pair_of(ours, i, other, i))
    comparison = distinct(iter(pairs))
    return Comparison(comparison.pairs, left_out + comparison.left_out, (sources[0], sources[1]))


def pairs_with_labels(groups: Sequence[Any]) -> Iterator[Pair]:
    """Yield the pairs that preference data compare, with their labels."""
    for group in groups:
        for judgement in group.judgements:
            i, j = sorted((judgement.better, judgement.worse))
            order = sides(judgement)
            label = 0.5 if order is None else float(order == (i, j))
            ended = (group.ended[i], group.ended[j]) if group.ended else (True, True)
            yield Pair(group.prompt, group.responses[i], group.responses[j], ended, group.origin, label)


def distinct(pairs: Iterator[Pair]) -> Comparison:
    """Return each pair once, also if its responses are swapped, and count the others."""
    kept: dict[str, Pair] = {}
    left_out = Counter[str]()
    for pair in pairs:
        swapped = Pair(pair.prompt, pair.second, pair.first)
        if pair.first == pair.second:
            left_out["pairs of identical responses"] += 1
        elif pair.key in kept or swapped.key in kept:
            left_out["repeated pairs, which are judged once"] += 1
        else:
            kept[pair.key] = pair
    return Comparison(list(kept.values()), left_out)
