"""An OpenAI-compatible server (vLLM, SGLang, `transformers serve`, a paid API) asked many things at once.

What comes back is handed on as it comes, so that whoever asked can put it on disk at once. 408, 409, 429, 5xx, broken
connections and answers that are not what they must be are tried again, later each time. Whoever stops waiting (Ctrl-C,
a full disk) still gets what is under way: it is paid for.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

from preftune.errors import ConfigError, IncompleteError
from preftune.types import Text, as_json

Answered = TypeVar("Answered")
LONGEST_PAUSE_S = 30.0
REFUSES = "the server refuses"
REFUSED = (400, 413, 422)  # this request: too long, or against a filter; the next one may pass
LOST_IN_A_ROW = 10  # requests without an answer in a row, after all attempts, after which the server is down


class MalformedError(Exception):
    """An answer that is no answer; it is asked for again."""


class RefusedError(ConfigError):
    """One request that the server does not take, whoever asks again; another one may pass."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server wrote, whether it came to an end by itself, and the tokens it counted."""

    text: str
    ended: bool
    prompt_tokens: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Client:
    """Where to ask, and how patiently. `key_env` names the environment variable with the key, which is never kept.

    settings   what every request says besides, or instead of what we would say: None leaves a setting out
    """

    url: str
    model: str
    key_env: str | None = None
    concurrency: int = 8
    attempts: int = 6
    timeout_s: float = 120.0
    pause_s: float = 0.5
    settings: Mapping[str, Any] = field(default_factory=dict)
    _clients: list[Any] = field(default_factory=list, compare=False, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)

    @staticmethod
    def from_options(
        url: str | None, model: str, key_env: str | None, concurrency: int, timeout_s: float, settings: str | None
    ) -> Client | None:
        """The server of a command's options; None without a URL. Raises ConfigError for settings that are none."""
        given = settings_of(settings, "--server-settings") if settings else {}
        if url is None and given:
            raise ConfigError("settings without a server", where="--server-settings", fix="name the server's URL too")
        return Client(url, model, key_env, concurrency, timeout_s=timeout_s, settings=given) if url else None

    @property
    def record(self) -> dict[str, Any]:
        """What decides its answers, besides the question."""
        return {"url": self.url, "model": self.model, **({"settings": dict(self.settings)} if self.settings else {})}

    @property
    def name(self) -> str:
        """The same in one line."""
        return " ".join([self.url, self.model, *([json.dumps(self.settings, sort_keys=True)] if self.settings else [])])

    def max_tokens(self, usual: int) -> int:
        """The tokens that an answer may have."""
        found = (self.settings.get(name) for name in ("max_completion_tokens", "max_tokens"))
        return next((number for number in found if isinstance(number, int)), usual)

    def client(self) -> Any:
        """The library's client; `run_all` closes it. Raises ConfigError without the package or the key."""
        if not self._clients:
            try:
                import openai
            except ImportError as error:
                raise ConfigError(
                    "the openai package is not installed", where="--server", fix="pip install 'preftune[judge]'"
                ) from error
            key = os.environ.get(self.key_env) if self.key_env else "none"
            if not key:
                raise ConfigError(f"the environment variable {self.key_env} is not set", where="--api-key-env")
            base = self.url.rstrip("/")
            base = base if base.endswith("/v1") else f"{base}/v1"
            self._clients.append(openai.OpenAI(base_url=base, api_key=key, max_retries=0, timeout=self.timeout_s))
        return self._clients[0]

    def ask(self, prompt: Text, **settings: Any) -> Reply:
        """One answer: a completion of a text, or the next message of a chat. Tries `attempts` times."""
        return self._patiently(lambda: self._once(prompt, settings))

    def _once(self, prompt: Text, settings: dict[str, Any]) -> Reply:
        client = self.client()
        ours = {key: value for key, value in settings.items() if key not in {"extra_body", *self.settings}}
        body = {**settings.get("extra_body", {}), **self.settings}
        said = {**ours, "extra_body": {key: value for key, value in body.items() if value is not None}}
        if isinstance(prompt, str):
            found = client.completions.create(model=self.model, prompt=prompt, **said)
        else:
            found = client.chat.completions.create(model=self.model, messages=as_json(prompt), **said)
        choices = getattr(found, "choices", None)
        if not choices:
            raise MalformedError(f"an answer without choices: {str(found)[:80]!r}")
        text = choices[0].text if isinstance(prompt, str) else getattr(choices[0].message, "content", None)
        if not isinstance(text, str):
            raise MalformedError("an answer without text")
        usage = getattr(found, "usage", None)
        prompt_tokens, tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        return Reply(_repaired(text), choices[0].finish_reason != "length", prompt_tokens, tokens)

    def _patiently(self, work: Callable[[], Answered]) -> Answered:
        import openai

        for attempt in range(1, self.attempts + 1):
            try:
                return work()
            except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
                last: Exception = error
            except openai.APIStatusError as error:
                if error.status_code not in (408, 409, 425):
                    raise _refusal(error, self.url) from error
                last = error
            except UnicodeEncodeError as error:  # an answer has none: it is read, not written
                raise RefusedError("the request holds half a character", where=self.url) from error
            except (LookupError, TypeError, AttributeError, RecursionError) as error:
                last = MalformedError(f"an answer of another shape: {type(error).__name__} {error}")
            except (openai.APIError, MalformedError, ValueError) as error:  # not JSON, too
                last = error
            pause = _pause(last) or self.pause_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            if attempt == self.attempts or self._stop.wait(min(LONGEST_PAUSE_S, pause)):
                break
        raise IncompleteError(
            f"no answer after {attempt} attempts: {_said(last)}",
            where=self.url,
            fix="is the server up? The same command goes on from what was answered",
        ) from last

    def run_all(
        self,
        jobs: Sequence[Callable[[], Answered]],
        *,
        keep: Callable[[int, Answered], None] | None = None,
        lost: Callable[[int, RefusedError | IncompleteError], None] | None = None,
    ) -> Iterator[tuple[int, Answered]]:
        """(number, result) of every job as it comes, `concurrency` at a time.

        When one fails, nothing new begins, what is under way is handed on first, and then the error is raised. With
        `lost`, a job that was refused or not answered is told to it and the others go on; LOST_IN_A_ROW that were not
        answered mean that the server is down. After Ctrl-C what is under way may end, without another attempt, and is
        handed on too. `keep` is called with every result before it is handed on; it gets what is under way even where
        nobody takes the results any more, because an error came up there.
        """
        under_way: dict[Future[Answered], int] = {}

        def taken(future: Future[Answered]) -> tuple[int, Answered]:
            result = under_way[future], future.result()
            if keep:
                keep(*result)
            del under_way[future]  # not before: what is interrupted in `keep` is kept once more
            return result

        def remaining() -> Iterator[tuple[int, Answered]]:
            self._stop.set()
            for future in as_completed(list(under_way)):
                if future.exception() is None:
                    yield taken(future)

        self._stop.clear()
        self.client()
        try:
            with ThreadPoolExecutor(self.concurrency) as pool:
                try:
                    yield from self._in_turn(pool, jobs, under_way, taken, lost)
                except GeneratorExit:
                    for _ in remaining():
                        pass
                    raise
                except BaseException:
                    yield from remaining()
                    raise
        finally:
            while self._clients:
                self._clients.pop().close()

    def _in_turn(
        self,
        pool: ThreadPoolExecutor,
        jobs: Sequence[Callable[[], Answered]],
        under_way: dict[Future[Answered], int],
        taken: Callable[[Future[Answered]], tuple[int, Answered]],
        lost: Callable[[int, RefusedError | IncompleteError], None] | None,
    ) -> Iterator[tuple[int, Answered]]:
        """What `run_all` does as long as nobody stops it."""
        failed: BaseException | None = None
        following = iter(enumerate(jobs))
        in_a_row = 0
        while True:
            while failed is None and len(under_way) < self.concurrency:
                number, job = next(following, (None, None))
                if job is None or number is None:
                    break
                under_way[pool.submit(job)] = number
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if error is None:
                    in_a_row = 0
                    yield taken(future)
                    continue
                number = under_way.pop(future)
                in_a_row = in_a_row + 1 if isinstance(error, IncompleteError) else 0
                if lost and isinstance(error, RefusedError | IncompleteError):
                    lost(number, error)
                    if in_a_row < max(LOST_IN_A_ROW, 2 * self.concurrency):
                        continue
                failed = failed or error
        if failed is not None:
            raise failed


def settings_of(text: str, where: str) -> dict[str, Any]:
    """A server's settings from JSON. Raises ConfigError for what is none, or what decides who is asked what."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        found = json.loads(text, parse_constant=refuse)
    except ValueError as error:
        found, why = None, str(error)
    else:
        why = "it is not an object of names and values"
    if not isinstance(found, dict):
        fix = """e.g. '{"max_tokens": null, "max_completion_tokens": 2000, "temperature": null}'"""
        raise ConfigError(f"not settings in JSON: {text!r}", where=where, why=why, fix=fix)
    ours = found.keys() & {"model", "messages", "prompt", "n", "stream", "extra_body"}
    if ours:
        raise ConfigError(f"{', '.join(sorted(ours))} cannot be set", where=where, fix="leave it out")
    return found


def _refusal(error: Any, url: str) -> ConfigError:
    """What is raised for a status that no further attempt changes."""
    what = f"{REFUSES}: {error.status_code} {_said(error)}"
    if error.status_code in REFUSED:
        return RefusedError(
            what,
            where=url,
            fix="check the prompt's length and the settings, and leave out with null what this model does not take "
            "(--server-settings, or the end of judge:URL,MODEL,VARIABLE,SETTINGS); what was answered is kept",
        )
    fix = "check the model's name, the key and the settings; what was answered is kept"
    return ConfigError(what, where=url, fix=fix)


def _said(error: Exception) -> str:
    """The first line of an error; of a server's answer, its sentence."""
    body = getattr(error, "body", None)
    sentence = body.get("message") if isinstance(body, dict) else body
    text = sentence if isinstance(sentence, str) else str(error)
    return _repaired((text.strip().splitlines() or [type(error).__name__])[0][:200])


def _pause(error: Exception) -> float | None:
    """What the server asks for in Retry-After, in seconds."""
    response = getattr(error, "response", None)
    value = response.headers.get("retry-after") if response is not None else None
    try:
        seconds = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _count(usage: Any, name: str) -> int:
    """A number of tokens; 0 for what is none."""
    found = getattr(usage, name, 0)
    return found if isinstance(found, int) else 0


def _repaired(text: str) -> str:
    """Halves of a character (lone surrogates), which JSON can hold and no file can, become U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
