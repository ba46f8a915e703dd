"""preftune sample: n responses per prompt, from a model in this process or from a server.

Each response is appended to `<out>.part` as soon as it is complete. Rerun the same command to resume from that file.
When all responses are there, `out` is written: one line per prompt, in the order of the prompts. A response depends
only on its settings, its prompt and its index, so a command with a different n or different prompts reuses responses in
`out`; those that it does not need are saved in `<out>.part`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from preftune.chat.open import renderer_of
from preftune.client import Client, RefusedError
from preftune.config.data import plain_paths
from preftune.config.schema import DataConfig, ModelConfig
from preftune.data.prompts import read_prompts
from preftune.errors import ConfigError, IncompleteError, RunError, require_writable, writing
from preftune.files import Journal, digest, journal_line, sealed, write_json, write_text
from preftune.formats.account import Account
from preftune.lifecycle.data import prompts_that_fit
from preftune.lifecycle.open_policy import model_fingerprint, open_policy
from preftune.lifecycle.policy import compute_dtype, device_of
from preftune.locks import locked_file
from preftune.model.generate import Sampling, sample
from preftune.ranks.group import first, from_first, gather, require_one, world
from preftune.ranks.work import own
from preftune.sources.read import fingerprint
from preftune.train.display import Display
from preftune.types import PreferenceGroup, Text, as_json
from preftune.workflows.data_section import RENDERING, UNLIMITED, chat_options_of, max_dropped_of, read_rows
from preftune.workflows.sample_rows import Key, Response, read_meta, read_out, require_unchanged

ROWS = 256  # responses sampled per call; a crash loses at most these


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """The settings of a sample command.

    model   folder, run or Hub id; with `server`, the model's name on the server
    data    the section under which the prompts are read and rendered
    moment  the date for the chat template in ISO format; None: as the model was trained, else now
    """

    model: str
    data: DataConfig
    sampling: Sampling
    max_prompts: int | None = None
    dtype: str = "auto"
    server: Client | None = None
    moment: str | None = None


Groups = Sequence[PreferenceGroup]
Job = tuple[int, int]  # index of a prompt, and of one of its responses
Save = Callable[[Job, Response], None]


@dataclass(frozen=True, slots=True)
class Files:
    """`out`, its <out>.meta.json and its journal <out>.part. `settings` are those that every response depends on, and
    `identity` is their hash. `request` states the prompts and the number of responses."""

    out: Path
    meta: Path
    part: Path
    settings: dict[str, Any]
    request: dict[str, Any]
    identity: str


def files_of(options: SampleOptions, out: Path) -> Files:
    """Return the files of a command. Raises RunError if `out` holds samples with different settings."""
    data = options.data
    settings = {  # everything that a response depends on, other than its prompt and its index
        "model": options.model,
        "weights": None if options.server else model_fingerprint(options.model),
        "sampling": {name: value for name, value in asdict(options.sampling).items() if name != "n"},
        "dtype": options.dtype,
        "chat_template": data.chat_template,
        **({"chat_template_kwargs": data.chat_template_kwargs} if data.chat_template_kwargs else {}),
        **({"as_chat": data.as_chat} if data.as_chat != "auto" else {}),
        "server": options.server.record if options.server else None,
    }
    rows = data.model_dump(mode="json", exclude_defaults=True, exclude={"train", *RENDERING})
    prompts, n = fingerprint(plain_paths(data.train, "sample")), options.sampling.n
    request = {"prompts": prompts, "n": n, "max_prompts": options.max_prompts, **rows}
    identity = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    meta, part = out.with_name(f"{out.name}.meta.json"), out.with_name(f"{out.name}.part")
    before = read_meta(meta) if out.is_file() else {}
    if out.is_file():
        require_unchanged(out, before)
    if out.is_file() and before.get("identity") != identity:
        missing = f"{meta.name}, which has the settings of these samples, is missing"
        raise RunError(
            "the file contains samples with different settings" if before else missing,
            where=str(out),
            fix="choose a different --out, delete the file, or restore its settings",
        )
    return Files(out, meta, part, settings, request, identity)


def run(options: SampleOptions, out: Path, display: Display) -> Path:
    """Write `out`. Raises IncompleteError if requests to a server failed; completed responses are saved.

    Raises RunError if another command writes the same file.
    """
    require_writable(out)
    if options.server:
        _require_server_options(options)
    if not first():
        return _run(options, out, display)
    with locked_file(out):
        return _run(options, out, display)


def _run(options: SampleOptions, out: Path, display: Display) -> Path:
    files = files_of(options, out)
    groups, account = read_rows(read_prompts, options.data)
    if from_first(lambda: out.is_file() and read_meta(files.meta).get("asked") == files.request):
        display.say(f"{out} is complete, so nothing was sampled")
        return out
    responses, failed = from_first(lambda: load_responses(files))
    groups, indices = groups[: options.max_prompts], range(options.sampling.n)
    complete = all((hash_of(group.prompt), k) in responses for group in groups for k in indices)
    local = None
    if not options.server and not complete:
        display.say(f"loading the model {options.model}")
        local = open_local(options, groups, account)
    if local:
        groups = [group for group in groups if group.prompt in local.prompts]
    shown = account.lines()
    display.say("\n".join(shown))
    with Journal(files.part if first() else Path(os.devnull)) as journal:
        if not journal.rows:
            journal.add({"identity": files.identity})
        refused = _complete(options, groups, local, responses, failed, journal, display)
    for p, error in refused.items():
        account.drop(error.what, groups[p].origin)
    for line in account.lines():
        if line not in shown:
            display.say(line)
    answered = [group for p, group in enumerate(groups) if p not in refused]
    if refused and not answered:
        raise next(iter(refused.values()))
    _write(files, answered, indices, responses)
    _report(options, out, [[responses[hash_of(group.prompt), k] for k in indices] for group in answered], display)
    return out


def _require_server_options(options: SampleOptions) -> None:
    """Raise ConfigError for options that have no effect with a server."""
    require_one("requests to a server", "start one process; --concurrency sets the number of parallel requests")
    if options.data.chat_template_kwargs or options.data.as_chat is True:
        raise ConfigError(
            "the option has no effect with a server, which applies its own chat template",
            where="--as-chat" if options.data.as_chat is True else "--chat-template-kwargs",
            fix="remove the option; vLLM takes --server-settings '{\"chat_template_kwargs\": {...}}'",
        )


def _complete(
    options: SampleOptions,
    groups: Groups,
    local: Local | None,
    responses: dict[Key, Response],
    failed: set[Key],
    journal: Journal,
    display: Display,
) -> dict[int, RefusedError]:
    """Add the missing responses. Return the prompts that a server refused. Raises IncompleteError if others failed."""
    hashes = [hash_of(group.prompt) for group in groups]
    jobs = [(p, k) for p in range(len(groups)) for k in range(options.sampling.n)]
    missing = [(p, k) for p, k in jobs if (hashes[p], k) not in responses]
    # requests that failed last time come last: if they fail again, the others have been made
    missing.sort(key=lambda job: (hashes[job[0]], job[1]) in failed)
    done = len(jobs) - len(missing)
    if done:
        display.say(f"{done} of {len(jobs)} responses are already sampled")
    with display.stage("sample", len(jobs), done) as stage:

        def save(job: Job, response: Response) -> None:
            nonlocal done
            p, k = job
            journal.add({"prompt": hashes[p], "k": k, **asdict(response)})
            done += (hashes[p], k) not in responses
            responses[hashes[p], k] = response
            stage.advance(done)

        if options.server is None:
            if local:
                _in_process(local, options.sampling, groups, missing, save)
            return {}
        refused, errors = _from_server(options, groups, missing, save)
    for p, k in errors:
        journal.add({"prompt": hashes[p], "k": k, "failed": errors[p, k].what})
    still_missing = [job for job in missing if (hashes[job[0]], job[1]) not in responses and job[0] not in refused]
    if still_missing:
        error = next(iter(errors.values()))
        raise IncompleteError(
            f"{len(still_missing)} of {len(jobs)} responses are missing: {error.what}", where=error.where, fix=error.fix
        ) from error
    return refused


def _write(files: Files, groups: Groups, indices: range, responses: dict[Key, Response]) -> None:
    """Write `out`. Responses that were not requested stay in the journal, where a larger n finds them."""
    if not first():
        return
    rows, rest = [], dict(responses)
    for group in groups:
        key = hash_of(group.prompt)
        rows.append(row_of(group, [rest.pop((key, k)) for k in indices]))
    meta = {"identity": files.identity, "settings": files.settings}
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    content = "".join(lines).replace("\n", os.linesep).encode("utf-8", errors="backslashreplace")
    old = digest(files.out) if files.out.is_file() else None
    hashes = {"content": old, "next": hashlib.sha256(content).hexdigest()}
    # before `out`: an `out` without its identity would be refused, and until the end it is either of these two
    write_json(files.meta, sealed({**meta, **hashes}), durable=True)
    if rest:  # before `out` is replaced, as it may be the only file that holds them
        _write_part(files, responses)
    write_text(files.out, lines, durable=True)
    if rest:
        _write_part(files, rest)
    else:
        with writing(files.out):
            files.part.unlink()
    # last: "asked" marks `out` as finished
    write_json(files.meta, sealed({**meta, "asked": files.request, "content": digest(files.out)}), durable=True)


def _write_part(files: Files, responses: dict[Key, Response]) -> None:
    saved = ({"prompt": prompt, "k": k, **asdict(response)} for (prompt, k), response in responses.items())
    write_text(files.part, map(journal_line, [{"identity": files.identity}, *saved]), durable=True)


def _report(options: SampleOptions, out: Path, by_prompt: Sequence[Sequence[Response]], display: Display) -> None:
    if options.server and options.sampling.n > 1 and all(len({r.text for r in same}) == 1 for same in by_prompt):
        display.say(
            "warning: all responses to each prompt are identical, so the server does not sample (`transformers serve` "
            "samples only if the model's generation_config.json has do_sample: true)"
        )
    responses = [r for same in by_prompt for r in same]
    n, cut, tokens = len(responses), sum(not r.ended for r in responses), sum(r.tokens for r in responses)
    display.say(
        f"done: {out}: {n} responses to {len(by_prompt)} prompts, {tokens:,} tokens, {cut} cut off. "
        f"Next: preftune pairs {quote(str(out))} --reward REWARD --out pairs.jsonl"
    )


def row_of(group: PreferenceGroup, responses: Sequence[Response]) -> dict[str, Any]:
    """Return a line of samples.jsonl."""
    return {
        "prompt": as_json(group.prompt),
        "responses": [r.text for r in responses],
        "ended": [r.ended for r in responses],
        "tokens": [r.tokens for r in responses],
        "origin": group.origin,
    }


@dataclass(frozen=True, slots=True)
class Local:
    """A model in this process, and the token ids of the prompts that leave it room for a response."""

    model: Any
    tokenizer: Any
    prompts: dict[Text, list[int]]


def open_local(options: SampleOptions, groups: Groups, account: Account) -> Local:
    """Load the model and tokenise the prompts. Prompts that leave no room for a response are dropped and counted."""
    data, new_tokens = options.data, options.sampling.max_new_tokens
    dtype = compute_dtype(ModelConfig(path=options.model, dtype=options.dtype))  # type: ignore[arg-type]
    policy = open_policy(options.model, "--model", dtype, device_of(None))
    renderer = renderer_of(policy.source, data.chat_template, chat_options_of(data, options.moment))
    longest = data.max_prompt_length or UNLIMITED
    prompts = prompts_that_fit(groups, renderer, policy.model.config, new_tokens, account, "--max-new-tokens", longest)
    account.check(max_dropped_of(data))
    return Local(policy.model, renderer.tokenizer, {p.text: p.ids.tolist() for p in prompts})


def _in_process(local: Local, sampling: Sampling, groups: Groups, missing: Sequence[Job], save: Save) -> None:
    """Sample the missing responses. Each rank samples a share of them, and `save` is called on all ranks."""
    size = ROWS * world()
    for begin in range(0, len(missing), size):
        block = missing[begin : begin + size]
        mine = own(block, lambda job: len(local.prompts[groups[job[0]].prompt]) + sampling.max_new_tokens)
        for part in gather(_sampled(local, sampling, groups, mine)):
            for job, response in part:
                save(job, response)


def _sampled(local: Local, sampling: Sampling, groups: Groups, jobs: Sequence[Job]) -> list[tuple[Job, Response]]:
    """Return the responses of `jobs`, those of a prompt together."""
    indices_of: dict[int, list[int]] = {}
    for p, k in jobs:
        indices_of.setdefault(p, []).append(k)
    prompts = [local.prompts[groups[p].prompt] for p in indices_of]
    samples = sample(local.model, local.tokenizer, prompts, sampling, only=list(indices_of.values()))
    responses = []
    for (p, indices), sampled in zip(indices_of.items(), samples, strict=True):
        response_ids = sampled.group.response_ids
        for k, text, ended, ids in zip(indices, sampled.texts, sampled.ended, response_ids, strict=True):
            responses.append(((p, k), Response(text, ended, len(ids))))
    return responses


def _from_server(
    options: SampleOptions, groups: Groups, missing: Sequence[Job], save: Save
) -> tuple[dict[int, RefusedError], dict[Job, IncompleteError]]:
    """Request the missing responses. Return the errors of refused prompts and those of failed requests."""
    server, sampling = options.server, options.sampling
    assert server is not None
    server.connect()  # reports a missing package or key before any request
    if sampling.n > 1 and server.settings.get("seed") is not None:
        what, fix = "sets one seed for all responses", "use --seed, from which each response gets its own seed"
        raise ConfigError(what, where="--server-settings", fix=fix)
    refused: dict[int, RefusedError] = {}
    errors: dict[Job, IncompleteError] = {}

    def job(p: int, k: int) -> Callable[[], Response]:
        settings: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": seed_of(sampling.seed, groups[p].prompt, k),
        }
        if sampling.top_k:
            settings["extra_body"] = {"top_k": sampling.top_k}

        def request() -> Response:
            if p in refused:  # other requests with this prompt would be refused too
                raise refused[p]
            reply = server.complete(groups[p].prompt, **settings)
            return Response(reply.text, reply.ended, reply.tokens)

        return request

    def record_failure(number: int, error: RefusedError | IncompleteError) -> None:
        if isinstance(error, RefusedError):
            refused.setdefault(missing[number][0], error)
        else:
            errors[missing[number]] = error

    jobs = [job(p, k) for p, k in missing]
    with suppress(IncompleteError):  # the server is down, which `errors` has recorded
        for _ in server.run_all(jobs, on_result=lambda number, r: save(missing[number], r), on_failure=record_failure):
            pass
    return refused, errors


def seed_of(seed: int, prompt: Text, k: int) -> int:
    """Return the seed of response k to a prompt. It does not depend on the other prompts or responses."""
    digest = hashlib.sha256(f"{seed} {k} {prompt!r}".encode()).digest()
    return int.from_bytes(digest[:4], "little") & 0x7FFFFFFF


def hash_of(prompt: Text) -> str:
    """Return the hash that identifies a prompt in the journal."""
    return hashlib.sha256(json.dumps(as_json(prompt)).encode()).hexdigest()


def load_responses(files: Files) -> tuple[dict[Key, Response], set[Key]]:
    """Return the responses in `out` and in the journal, and the keys of failed requests in the journal.

    Raises RunError for a damaged file, and for a journal that holds responses with different settings.
    """
    responses = read_out(files.out) if files.out.is_file() else {}
    failed: set[Key] = set()
    if not files.part.is_file():
        return responses, failed
    with Journal(files.part) as journal:
        head, rows = (journal.rows or [{}])[0], journal.rows[1:]
    if head.get("identity") != files.identity:
        if any("text" in row for row in rows):
            raise RunError(
                "the file contains responses of an unfinished command with different settings",
                where=str(files.part),
                fix="delete the file, choose a different --out, or restore its settings",
            )
        with writing(files.part):
            files.part.unlink()
        return responses, failed
    for row in rows:
        if "text" in row:
            responses[row["prompt"], row["k"]] = Response(row["text"], row["ended"], row["tokens"])
        else:
            failed.add((row["prompt"], row["k"]))
    return responses, failed
