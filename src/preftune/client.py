"""Client for an OpenAI-compatible server (vLLM, SGLang, `transformers serve`, a paid API) with concurrent requests.

Results are passed on as they arrive, so that callers can save them at once. Status 408, 409, 425, 429 and 5xx, broken
connections and malformed replies are retried with increasing pauses. If the caller stops early (Ctrl-C, a full disk),
results that arrive within a second are still passed on, because they are already paid for. bounded_http.py limits time
and size of an answer. The key is in no message and no record.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

from preftune.errors import ConfigError, IncompleteError
from preftune.types import ARGUMENTS, Text, as_json, split_arguments, split_tools

Result = TypeVar("Result")
MAX_PAUSE_S = 30.0
REFUSED_MESSAGE = "the server refused the request"
REFUSED_STATUSES = (400, 413, 422)  # the request is too long or filtered; other requests may succeed
TIMEOUT_S = 120.0  # for a whole reply, by default
TIMEOUT_LIMITS_S = (0.1, 86400.0)
GRACE_S = 1.0  # after the caller stops, results that arrive within this time are still passed on
SECRET = re.compile(
    r"(?i)(extra_)?headers|(x-)?api[-_]?key|authorization|(access|auth|bearer)[-_]?token|password|secret"
)
SHORTEST_KEY = 6  # shorter ones occur in ordinary text
MAX_FAILURES_IN_A_ROW = 10  # requests that failed after all attempts; then the server counts as down


class MalformedReplyError(Exception):
    """A reply that cannot be used. The request is retried."""


class RefusedError(ConfigError):
    """A request that the server refuses permanently. Other requests may succeed."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Generated text, whether it ended before the token limit, and the server's count of its tokens."""

    text: str
    ended: bool
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer that is streamed: text or reasoning, whether it ends the answer, and the tokens so far."""

    text: str = ""
    reasoning: str = ""
    ended: bool = False
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Client:
    """Connection and retry settings of one server and model.

    key_env    name of the environment variable that holds the API key; the key itself is never stored
    settings   added to every request and replacing our settings of the same name; null removes a setting
    """

    url: str
    model: str
    key_env: str | None = None
    concurrency: int = 8
    attempts: int = 6
    timeout_s: float = TIMEOUT_S
    pause_s: float = 0.5
    settings: Mapping[str, Any] = field(default_factory=dict)
    _connections: list[Any] = field(default_factory=list, compare=False, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)

    @staticmethod
    def from_options(
        url: str | None, model: str, key_env: str | None, concurrency: int, timeout_s: float, settings: str | None
    ) -> Client | None:
        """Return the client for a command's options, or None without a URL. Raises ConfigError for bad settings."""
        extra = parse_settings(settings, "--server-settings") if settings else {}
        if url is None and extra:
            raise ConfigError("no server URL is set", where="--server-settings", fix="also set the server's URL")
        return Client(url, model, key_env, concurrency, timeout_s=timeout_s, settings=extra) if url else None

    @property
    def record(self) -> dict[str, Any]:
        """URL, model and settings: what determines the replies, apart from the prompt."""
        return {"url": self.url, "model": self.model, **({"settings": dict(self.settings)} if self.settings else {})}

    @property
    def name(self) -> str:
        """The same as one line."""
        return " ".join([self.url, self.model, *([json.dumps(self.settings, sort_keys=True)] if self.settings else [])])

    def max_tokens(self, default: int) -> int:
        """Return the token limit of a reply: the one in `settings`, else `default`."""
        limits = (self.settings.get(name) for name in ("max_completion_tokens", "max_tokens"))
        return next((limit for limit in limits if isinstance(limit, int)), default)

    def connect(self) -> Any:
        """Return the openai client, which `run_all` closes. Raises ConfigError if the package or the key is missing."""
        if not self._connections:
            try:
                import openai

                from preftune.bounded_http import BoundedClient, require_safe_url
            except ImportError as error:
                raise ConfigError(
                    "the openai package is not installed", where="--server", fix="pip install 'preftune[judge]'"
                ) from error
            key = self._key() if self.key_env else "none"
            if not key:
                what, fix = f"the environment variable {self.key_env} is not set", f"run export {self.key_env}=KEY"
                raise ConfigError(what, where="--api-key-env", fix=fix)
            require_safe_url(self.url, "--server", has_key=self.key_env is not None)
            base = self.url.rstrip("/")
            base = base if base.endswith("/v1") else f"{base}/v1"
            bounded = BoundedClient(self.timeout_s)
            self._connections.append(openai.OpenAI(base_url=base, api_key=key, max_retries=0, http_client=bounded))
        return self._connections[0]

    def _key(self) -> str:
        return os.environ.get(self.key_env, "") if self.key_env else ""

    def complete(self, prompt: Text, **settings: Any) -> Reply:
        """Return the completion of a text, or the next message of a chat, with up to `attempts` attempts."""
        return self._with_retries(lambda: self._request(prompt, settings))

    def of_model(self, model: str) -> Client:
        """Return a client of another model on the same server."""
        return replace(self, model=model, _connections=[], _stop=threading.Event())

    def models(self) -> list[str]:
        """Return the names of the models on the server; empty if it does not list them. Raises IncompleteError."""
        try:
            return sorted(str(model.id) for model in self._with_retries(lambda: list(self.connect().models.list())))
        except ConfigError as error:
            if error.what.startswith(REFUSED_MESSAGE):
                return []
            raise

    def stream(self, prompt: Text, **settings: Any) -> Iterator[Piece]:
        """Yield the pieces of the completion of a text, or of the next message of a chat, as they arrive.

        The request is repeated until an answer begins. Raises the errors of `complete`, and IncompleteError if the
        answer breaks off.
        """
        chunks = self._with_retries(lambda: self._create(prompt, {**settings, "stream": True}))
        try:
            for chunk in chunks:
                yield _piece_of(chunk, self._key())
        except Exception as error:  # the library passes on errors of its HTTP client as they are
            what = f"the answer broke off: {_message(error, self._key())}"
            raise IncompleteError(what, where=self.url, fix="send the message again") from None
        finally:
            chunks.close()

    def _create(self, prompt: Text, settings: dict[str, Any]) -> Any:
        """Send one request, and return the reply of the openai client."""
        connection = self.connect()
        ours = {key: value for key, value in settings.items() if key not in {"extra_body", *self.settings}}
        body = {**settings.get("extra_body", {}), **self.settings}
        arguments = {**ours, "extra_body": {key: value for key, value in body.items() if value is not None}}
        if isinstance(prompt, str):
            return connection.completions.create(model=self.model, prompt=prompt, **arguments)
        messages, template_arguments = split_arguments(prompt)
        messages, tools = split_tools(messages)
        arguments |= {"tools": tools} if tools else {}
        if template_arguments:
            both = {**arguments["extra_body"].get(ARGUMENTS, {}), **template_arguments}
            arguments["extra_body"] = {**arguments["extra_body"], ARGUMENTS: both}
        return connection.chat.completions.create(model=self.model, messages=as_json(messages), **arguments)

    def _request(self, prompt: Text, settings: dict[str, Any]) -> Reply:
        completion = self._create(prompt, settings)
        choices = getattr(completion, "choices", None)
        if not choices:
            raise MalformedReplyError(f"the reply has no choices: {str(completion)[:80]!r}")
        text = choices[0].text if isinstance(prompt, str) else getattr(choices[0].message, "content", None)
        if not isinstance(text, str):
            raise MalformedReplyError("the reply has no text")
        tokens = getattr(getattr(completion, "usage", None), "completion_tokens", 0)
        ended = choices[0].finish_reason != "length"
        return Reply(
            _without_key(_replace_surrogates(text), self._key()), ended, tokens if isinstance(tokens, int) else 0
        )

    def _with_retries(self, request: Callable[[], Result]) -> Result:
        import httpx2
        import openai

        for attempt in range(1, self.attempts + 1):
            try:
                return request()
            except ConfigError:  # a redirect to another host
                raise
            except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
                last: Exception = error
            except openai.APIStatusError as error:
                if error.status_code not in (408, 409, 425):
                    raise _permanent_error(error, self.url, self._key()) from None
                last = error
            except UnicodeEncodeError as error:  # raised only for the request: replies are decoded, not encoded
                raise RefusedError("the request contains a lone surrogate character", where=self.url) from error
            except (LookupError, TypeError, AttributeError, RecursionError) as error:
                last = MalformedReplyError(f"the reply has an unexpected structure: {type(error).__name__} {error}")
            # ValueError: not JSON; HTTPError: the body of an error was cut off or slow
            except (openai.APIError, httpx2.HTTPError, MalformedReplyError, ValueError) as error:
                last = error
            pause = _retry_after(last) or self.pause_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            if attempt == self.attempts or self._stop.wait(min(MAX_PAUSE_S, pause)):
                break
        raise IncompleteError(
            f"the request failed after {attempt} attempts: {_message(last, self._key())}",
            where=self.url,
            fix="check that the server is running; rerun the same command to resume",
        ) from None  # the error of the library could quote the key

    def run_all(
        self,
        jobs: Sequence[Callable[[], Result]],
        *,
        on_result: Callable[[int, Result], None] | None = None,
        on_failure: Callable[[int, RefusedError | IncompleteError], None] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Run the jobs, `concurrency` at a time, and yield (job number, result) as they finish.

        on_result    called with every result before it is yielded, also within GRACE_S after the consumer stops
        on_failure   called for a job that was refused or failed; the other jobs continue until MAX_FAILURES_IN_A_ROW
                     fail in a row (or twice `concurrency`, if that is more), when the server counts as down

        On any other error, or without `on_failure`, no new job starts; the jobs in flight finish and are yielded, then
        the error is raised. After Ctrl-C, the jobs that finish within GRACE_S are also yielded; the others are left to
        their threads, and their results are lost.
        """
        in_flight: dict[Future[Result], int] = {}

        def deliver(future: Future[Result]) -> tuple[int, Result]:
            result = in_flight[future], future.result()
            if on_result:
                on_result(*result)
            del in_flight[future]  # last: if `on_result` is interrupted, `drain` delivers this result again
            return result

        def drain(seconds: float | None) -> Iterator[tuple[int, Result]]:
            self._stop.set()
            with suppress(TimeoutError):
                for future in as_completed(list(in_flight), timeout=seconds):
                    if future.exception() is None:
                        yield deliver(future)

        self._stop.clear()
        self.connect()
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            yield from self._run_in_pool(pool, jobs, in_flight, deliver, on_failure)
        except GeneratorExit:
            for _ in drain(GRACE_S):
                pass
            raise
        except BaseException as error:
            yield from drain(GRACE_S if isinstance(error, KeyboardInterrupt) else None)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            while self._connections:
                self._connections.pop().close()

    def _run_in_pool(
        self,
        pool: ThreadPoolExecutor,
        jobs: Sequence[Callable[[], Result]],
        in_flight: dict[Future[Result], int],
        deliver: Callable[[Future[Result]], tuple[int, Result]],
        on_failure: Callable[[int, RefusedError | IncompleteError], None] | None,
    ) -> Iterator[tuple[int, Result]]:
        """Keep `concurrency` jobs in flight and yield their results; `run_all` handles interruptions."""
        fatal: BaseException | None = None
        pending = iter(enumerate(jobs))
        failures_in_a_row = 0
        while True:
            if fatal is None:
                for number, job in islice(pending, self.concurrency - len(in_flight)):
                    in_flight[pool.submit(job)] = number
            if not in_flight:
                break
            for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if error is None:
                    failures_in_a_row = 0
                    yield deliver(future)
                    continue
                number = in_flight.pop(future)
                failures_in_a_row = failures_in_a_row + 1 if isinstance(error, IncompleteError) else 0
                if on_failure and isinstance(error, RefusedError | IncompleteError):
                    on_failure(number, error)
                    if failures_in_a_row < max(MAX_FAILURES_IN_A_ROW, 2 * self.concurrency):
                        continue
                fatal = fatal or error
        if fatal is not None:
            raise fatal


def parse_settings(text: str, where: str, allow_timeout: bool = False) -> dict[str, Any]:
    """Parse a server's settings. Raises ConfigError if they are not a JSON object or set a reserved name.

    allow_timeout   they may have our time limit, which is not sent to the server
    """

    def reject_constant(constant: str) -> None:
        raise ValueError(f"{constant} is not valid JSON")

    try:
        settings = json.loads(text, parse_constant=reject_constant)
    except ValueError as error:
        settings, why = None, str(error)
    else:
        why = "they are not a JSON object"
    if not isinstance(settings, dict):
        fix = """write for example '{"max_tokens": null, "max_completion_tokens": 2000, "temperature": null}'"""
        raise ConfigError("the settings cannot be read", where=where, why=why, fix=fix)  # they may hold a key
    reserved = settings.keys() & {"model", "messages", "prompt", "n", "stream", "extra_body"}
    if reserved:
        raise ConfigError(f"{', '.join(sorted(reserved))} cannot be set", where=where, fix="remove it")
    if "timeout" in settings and not allow_timeout:
        raise ConfigError("timeout is not a setting of the server", where=where, fix="set --timeout SECONDS")
    secret = sorted(name for name in _names(settings) if SECRET.fullmatch(name))
    if secret:
        fix = "name the environment variable that holds the key (--api-key-env)"
        raise ConfigError(f"{', '.join(secret)} cannot be set", where=where, why="settings are saved", fix=fix)
    return settings


def _names(value: Any) -> Iterator[str]:
    """Yield the names in nested JSON objects."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from _names(part)
    elif isinstance(value, list):
        for part in value:
            yield from _names(part)


def _permanent_error(error: Any, url: str, key: str) -> ConfigError:
    what = f"{REFUSED_MESSAGE}: {error.status_code} {_message(error, key)}"
    if error.status_code in REFUSED_STATUSES:
        return RefusedError(
            what,
            where=url,
            fix="check the length of the prompt and the settings. Set a setting that the model does not accept to null "
            "(--server-settings, or SETTINGS in judge:URL,MODEL,VARIABLE,SETTINGS). Completed results are saved",
        )
    fix = "check the model's name, the key and the settings; completed results are saved"
    return ConfigError(what, where=url, fix=fix)


def _message(error: BaseException, key: str) -> str:
    """Return the first line of an error, or of the message in a server's error reply, without the key."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else body
    cause = error.__cause__ if str(error) == "Connection error." else None  # the library's words for any cause
    text = _without_key(message if isinstance(message, str) else str(cause or error), key)
    return _replace_surrogates((text.strip().splitlines() or [type(error).__name__])[0][:200])


def _without_key(text: str, key: str) -> str:
    """Return `text` in which the key, which a server may repeat, is replaced."""
    return text.replace(key, "[key]") if len(key) >= SHORTEST_KEY else text


def _retry_after(error: Any) -> float | None:
    """Return the seconds in the Retry-After header, or None if it is missing or not a positive number."""
    try:
        seconds = float(error.response.headers["retry-after"])
    except (AttributeError, KeyError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON can hold but UTF-8 files cannot, with U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _piece_of(chunk: Any, key: str) -> Piece:
    """Return the content of a chunk. Servers differ: a chunk may have no choice, and reasoning has two names."""
    choices = getattr(chunk, "choices", None) or []
    choice = choices[0] if choices else None
    delta = getattr(choice, "delta", choice)
    texts = [getattr(delta, name, None) for name in ("content", "text", "reasoning_content", "reasoning")]
    parts = [_without_key(_replace_surrogates(text), key) if isinstance(text, str) else "" for text in texts]
    tokens = getattr(getattr(chunk, "usage", None), "completion_tokens", 0)
    reason = getattr(choice, "finish_reason", None)
    return Piece(
        parts[0] or parts[1],
        parts[2] or parts[3],
        reason is not None and reason != "length",
        tokens if isinstance(tokens, int) else 0,
    )
