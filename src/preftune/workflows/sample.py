"""preftune sample: n responses a prompt, from a model in this process or from a server; nothing is sampled twice.

Every response goes to `<out>.part` as soon as it is there. The same command goes on from it, and at the end it becomes
`out`: one line a prompt, in the order of the prompts. A response depends on its settings, its prompt and its number
alone, so another n or other prompts take what `out` has; what they do not ask for stays in `<out>.part`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from preftune.chat.open import ChatOptions, renderer_of
from preftune.client import Client, RefusedError
from preftune.config.schema import DataConfig, ModelConfig
from preftune.data.prompts import read_prompts
from preftune.errors import ConfigError, IncompleteError, RunError, require_writable, writing
from preftune.files import Journal, write_json, write_rows
from preftune.formats.account import Account
from preftune.lifecycle.data import prompts_that_fit
from preftune.lifecycle.policy import compute_dtype, device_of
from preftune.lifecycle.saved import model_fingerprint, open_policy
from preftune.lifecycle.sections import UNLIMITED, max_dropped_of, options_of, require_rows, rows_of, section_of
from preftune.model.generate import Sampling, sample
from preftune.sources.read import fingerprint
from preftune.train.display import Display
from preftune.types import PreferenceGroup, Text, as_json

RENDERING = ("chat_template", "chat_template_kwargs", "as_chat")  # change what is asked, not which prompts
ROWS = 256  # responses sampled in one call: what a crash can lose


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """What is sampled from what. `model` is a folder, or the name that the server knows it by. `settings` is a whole
    data section; it takes the place of chat_template and chat."""

    model: str
    prompts: str
    sampling: Sampling
    max_prompts: int | None = None
    dtype: str = "auto"
    chat_template: str | None = None
    server: Client | None = None
    chat: ChatOptions = field(default_factory=ChatOptions)
    settings: DataConfig | None = None

    @property
    def section(self) -> DataConfig:
        """The settings under which the rows are read."""
        return section_of(self.prompts, self.settings, chat_template=self.chat_template)

    @property
    def options(self) -> ChatOptions:
        """How chat is rendered."""
        return options_of(self.settings, self.chat)


@dataclass(frozen=True, slots=True)
class Response:
    """One response: its text, whether it ended, its number of tokens."""

    text: str
    ended: bool
    tokens: int


Job = tuple[str, int]  # the mark of a prompt, and which of its responses


@dataclass(frozen=True, slots=True)
class Files:
    """Where samples lie. `identity` is of the settings that every response depends on; `asked` is how many of whom."""

    out: Path
    note: Path
    part: Path
    settings: dict[str, Any]
    asked: dict[str, Any]
    identity: str


def files_of(wanted: SampleOptions, out: Path) -> Files:
    """Raises RunError if `out` is there with other settings."""
    settings = _settings(wanted)
    asked = {"prompts": fingerprint(wanted.prompts), "n": wanted.sampling.n, "max_prompts": wanted.max_prompts}
    asked |= wanted.section.model_dump(mode="json", exclude_defaults=True, exclude={"train", *RENDERING})
    identity = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    note, part = out.with_name(f"{out.name}.meta.json"), out.with_name(f"{out.name}.part")
    if out.is_file() and _noted(note).get("identity") != identity:
        raise RunError(
            "holds other samples", where=str(out), fix="choose another --out, delete it, or go back to the old settings"
        )
    return Files(out, note, part, settings, asked, identity)


def run(wanted: SampleOptions, out: Path, display: Display) -> Path:
    """Write `out`. Raises IncompleteError, with all that was answered kept, if a server does not answer for all."""
    require_writable(out)
    if wanted.server and (wanted.chat.arguments or wanted.chat.as_chat):
        raise ConfigError(
            "the server renders chat messages itself",
            where="--as-chat" if wanted.chat.as_chat else "--chat-template-kwargs",
            fix='leave it out; for vLLM: --server-settings \'{"extra_body": {"chat_template_kwargs": {...}}}\'',
        )
    files = files_of(wanted, out)
    groups, account = read_prompts(wanted.prompts, rows_of(wanted.section))
    require_rows(account, wanted.section)
    if out.is_file() and _noted(files.note).get("asked") == files.asked:
        display.say(f"{out} is finished")
        return out
    found, failed = earlier(files)
    groups, places = groups[: wanted.max_prompts], range(wanted.sampling.n)
    whole = all((mark_of(group.prompt), k) in found for group in groups for k in places)
    local = None if wanted.server or whole else opened(wanted, groups, account)
    if local:
        groups = [group for group in groups if group.prompt in local.prompts]
    told = account.lines()
    for line in told:
        display.say(line)
    with Journal(files.part) as journal:
        if not journal.rows:
            journal.add({"identity": files.identity})
        refused = _complete(wanted, groups, local, found, failed, journal, display)
    for p, error in refused.items():
        account.drop(error.what, groups[p].origin)
    for line in account.lines():
        if line not in told:
            display.say(line)
    left = [group for p, group in enumerate(groups) if p not in refused]
    if refused and not left:
        raise next(iter(refused.values()))
    _write(files, left, places, found)
    _report(wanted, out, [[found[mark_of(group.prompt), k] for k in places] for group in left], display)
    return out


def _complete(
    wanted: SampleOptions,
    groups: Sequence[PreferenceGroup],
    local: Local | None,
    found: dict[Job, Response],
    failed: set[Job],
    journal: Journal,
    display: Display,
) -> dict[int, RefusedError]:
    """Sample what `found` lacks. The prompts that a server refuses; IncompleteError if it left some unanswered."""
    marks = [mark_of(group.prompt) for group in groups]
    every = [(p, k) for p in range(len(groups)) for k in range(wanted.sampling.n)]
    lacking = [(p, k) for p, k in every if (marks[p], k) not in found]
    # what failed the last time comes last, or it would keep the others from being asked for
    lacking.sort(key=lambda job: (marks[job[0]], job[1]) in failed)
    there = len(every) - len(lacking)
    if there:
        display.say(f"{there} of {len(every)} responses are there already")
    with display.stage("sample", len(every), there) as stage:

        def keep(job: tuple[int, int], response: Response) -> None:
            nonlocal there
            p, k = job
            journal.add({"prompt": marks[p], "k": k, **asdict(response)})
            there += (marks[p], k) not in found
            found[marks[p], k] = response
            stage.advance(there)

        if wanted.server is None:
            if local:
                _in_process(local, wanted.sampling, groups, lacking, keep)
            return {}
        refused, unanswered = _from_server(wanted, groups, lacking, keep)
    for p, k in unanswered:
        journal.add({"prompt": marks[p], "k": k, "failed": unanswered[p, k].what})
    lost = [job for job in lacking if (marks[job[0]], job[1]) not in found and job[0] not in refused]
    if lost:
        error = next(iter(unanswered.values()))
        raise IncompleteError(
            f"{len(lost)} of {len(every)} responses are missing: {error.what}", where=error.where, fix=error.fix
        ) from error
    return refused


def _write(files: Files, groups: Sequence[PreferenceGroup], places: range, found: dict[Job, Response]) -> None:
    """Responses that were not asked for go back to the journal, where a larger n finds them."""
    rows, rest = [], dict(found)
    for group in groups:
        mark = mark_of(group.prompt)
        rows.append(row_of(group, [rest.pop((mark, k)) for k in places]))
    note = {"identity": files.identity, "settings": files.settings}
    write_json(files.note, note)  # first: a file without its note is somebody else's
    if rest:  # before `out`, which may be where they lie
        spared = ({"prompt": mark, "k": k, **asdict(response)} for (mark, k), response in found.items())
        write_rows(files.part, [{"identity": files.identity}, *spared])
    write_rows(files.out, rows)
    if rest:
        spared = ({"prompt": mark, "k": k, **asdict(response)} for (mark, k), response in rest.items())
        write_rows(files.part, [{"identity": files.identity}, *spared])
    else:
        with writing(files.out):
            files.part.unlink()
    write_json(files.note, {**note, "asked": files.asked})  # last: it says that `out` is finished


def _report(wanted: SampleOptions, out: Path, drawn: Sequence[Sequence[Response]], display: Display) -> None:
    if wanted.server and wanted.sampling.n > 1 and all(len({r.text for r in own}) == 1 for own in drawn):
        display.say(
            "warning: all responses to a prompt are the same: the server does not sample (`transformers serve` does so "
            "only for a model whose generation_config.json has do_sample: true)"
        )
    every = [r for own in drawn for r in own]
    cut, tokens = sum(not r.ended for r in every), sum(r.tokens for r in every)
    display.say(f"done: {out}: {len(every)} responses to {len(drawn)} prompts, {tokens:,} tokens, {cut} cut off")


def row_of(group: PreferenceGroup, responses: Sequence[Response]) -> dict[str, Any]:
    """A line of samples.jsonl."""
    return {
        "prompt": as_json(group.prompt),
        "responses": [r.text for r in responses],
        "ended": [r.ended for r in responses],
        "tokens": [r.tokens for r in responses],
        "origin": group.origin,
    }


@dataclass(frozen=True, slots=True)
class Local:
    """A model in this process, and the token ids of the prompts that leave it room to answer."""

    model: Any
    tokenizer: Any
    prompts: dict[Text, list[int]]


def opened(wanted: SampleOptions, groups: Sequence[PreferenceGroup], account: Account) -> Local:
    """The model with its prompts; those that leave no room are dropped and counted."""
    dtype = compute_dtype(ModelConfig(path=wanted.model, dtype=wanted.dtype))  # type: ignore[arg-type]
    policy = open_policy(wanted.model, "--model", dtype, device_of(None))
    renderer = renderer_of(policy.source, wanted.section.chat_template, wanted.options)
    new = wanted.sampling.max_new_tokens
    longest = wanted.section.max_prompt_length or UNLIMITED
    prompts = prompts_that_fit(groups, renderer, policy.model.config, new, account, "--max-new-tokens", longest)
    account.check(max_dropped_of(wanted.section))
    return Local(policy.model, renderer.tokenizer, {p.text: p.ids.tolist() for p in prompts})


def _in_process(
    local: Local,
    sampling: Sampling,
    groups: Sequence[PreferenceGroup],
    lacking: Sequence[tuple[int, int]],
    keep: Callable[[tuple[int, int], Response], None],
) -> None:
    for begin in range(0, len(lacking), ROWS):
        jobs = lacking[begin : begin + ROWS]
        wanted_of: dict[int, list[int]] = {}
        for p, k in jobs:
            wanted_of.setdefault(p, []).append(k)
        drawn = sample(
            local.model,
            local.tokenizer,
            [local.prompts[groups[p].prompt] for p in wanted_of],
            sampling,
            only=list(wanted_of.values()),
        )
        for (p, places), sampled in zip(wanted_of.items(), drawn, strict=True):
            for k, text, ended, ids in zip(
                places, sampled.texts, sampled.ended, sampled.group.response_ids, strict=True
            ):
                keep((p, k), Response(text, ended, len(ids)))


def _from_server(
    wanted: SampleOptions,
    groups: Sequence[PreferenceGroup],
    lacking: Sequence[tuple[int, int]],
    keep: Callable[[tuple[int, int], Response], None],
) -> tuple[dict[int, RefusedError], dict[tuple[int, int], IncompleteError]]:
    """The prompts that were refused, and the responses that did not come."""
    server, sampling = wanted.server, wanted.sampling
    assert server is not None
    server.connect()  # a missing package or key is said before anything else
    if sampling.n > 1 and server.settings.get("seed") is not None:
        raise ConfigError("one seed for all responses", where="--server-settings", fix="use --seed: each gets its own")
    refused: dict[int, RefusedError] = {}
    unanswered: dict[tuple[int, int], IncompleteError] = {}

    def job(p: int, k: int) -> Callable[[], Response]:
        settings: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": seed_of(sampling.seed, groups[p].prompt, k),
        }
        if sampling.top_k:
            settings["extra_body"] = {"top_k": sampling.top_k}

        def ask() -> Response:
            if p in refused:  # its other responses would be refused, too
                raise refused[p]
            reply = server.complete(groups[p].prompt, **settings)
            return Response(reply.text, reply.ended, reply.tokens)

        return ask

    def lost(number: int, error: RefusedError | IncompleteError) -> None:
        if isinstance(error, RefusedError):
            refused.setdefault(lacking[number][0], error)
        else:
            unanswered[lacking[number]] = error

    jobs = [job(p, k) for p, k in lacking]
    with suppress(IncompleteError):  # the server is down: `lost` was told
        for _ in server.run_all(jobs, on_result=lambda number, r: keep(lacking[number], r), on_failure=lost):
            pass
    return refused, unanswered


def seed_of(seed: int, prompt: Text, k: int) -> int:
    """The seed of one response, the same whatever else is sampled."""
    digest = hashlib.sha256(f"{seed} {k} {prompt!r}".encode()).digest()
    return int.from_bytes(digest[:4], "little") & 0x7FFFFFFF


def mark_of(prompt: Text) -> str:
    """A hash of a prompt, by which the journal knows it."""
    return hashlib.sha256(json.dumps(as_json(prompt)).encode()).hexdigest()


def earlier(files: Files) -> tuple[dict[Job, Response], set[Job]]:
    """The responses in `out` and in its journal, and those that a server was asked for in vain.

    Raises RunError for a journal of other settings that has responses, and for a damaged file.
    """
    found = _finished(files.out) if files.out.is_file() else {}
    failed: set[Job] = set()
    if not files.part.is_file():
        return found, failed
    with Journal(files.part) as journal:
        head, rows = (journal.rows or [{}])[0], journal.rows[1:]
    if head.get("identity") != files.identity:
        if any("text" in row for row in rows):
            raise RunError(
                "holds the beginning of other samples",
                where=str(files.part),
                fix="delete it, choose another --out, or go back to the old settings",
            )
        with writing(files.part):
            files.part.unlink()
        return found, failed
    for row in rows:
        if "text" in row:
            found[row["prompt"], row["k"]] = Response(row["text"], row["ended"], row["tokens"])
        else:
            failed.add((row["prompt"], row["k"]))
    return found, failed


def _finished(out: Path) -> dict[Job, Response]:
    """The responses in what an earlier call wrote."""
    found = {}
    for number, line in enumerate(out.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
            mark = hashlib.sha256(json.dumps(row["prompt"]).encode()).hexdigest()
            for k, drawn in enumerate(zip(row["responses"], row["ended"], row["tokens"], strict=True)):
                found[mark, k] = Response(*drawn)
        except (ValueError, LookupError, TypeError) as error:
            raise RunError(
                f"no line of samples: {error}", where=f"{out}:{number}", fix="delete the file, or choose another --out"
            ) from error
    return found


def _settings(wanted: SampleOptions) -> dict[str, Any]:
    """Everything that a response depends on beside its prompt and its number."""
    return {
        "model": wanted.model,
        "weights": None if wanted.server else model_fingerprint(wanted.model),
        "sampling": {name: value for name, value in asdict(wanted.sampling).items() if name != "n"},
        "dtype": wanted.dtype,
        "chat_template": wanted.section.chat_template,
        **({"chat_template_kwargs": wanted.options.arguments} if wanted.options.arguments else {}),
        **({"as_chat": True} if wanted.options.as_chat else {}),
        "server": wanted.server.record if wanted.server else None,
    }


def _noted(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
