"""preftune sample with a server: `transformers serve`, and a fake server with every kind of failure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.servers import Faulty, serving, transformers_serve

import preftune.client as client_module
from preftune.cli.main import run
from preftune.client import Client, RefusedError, Reply, parse_settings
from preftune.config.schema import DataConfig
from preftune.errors import ConfigError, IncompleteError, RunError
from preftune.model.generate import Sampling
from preftune.train.display import Display
from preftune.workflows import sample as samples
from preftune.workflows import winrate
from preftune.workflows.sample import SampleOptions

PROMPTS = ["the cat", "a dog", "once upon a time", "we can"]
QUIET = Display(quiet=True)


@pytest.fixture
def prompts(tmp_path: Path) -> DataConfig:
    return data_of(tmp_path / "prompts.jsonl", PROMPTS)


def data_of(path: Path, prompts: Sequence[Any]) -> DataConfig:
    return DataConfig(train=str(write_jsonl(path, [{"prompt": p} for p in prompts])))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def replies_to(server: Client, *prompts: str) -> list[tuple[int, Reply]]:
    return list(server.run_all([lambda p=p: server.complete(p) for p in prompts]))  # type: ignore[misc]


def saved_in(part: Path) -> int:
    """The number of responses in a journal."""
    return sum("text" in row for row in rows(part))


def sampling_copy(source: Path, folder: Path) -> Path:
    """Copy a model with do_sample: true, without which `transformers serve` decodes greedily."""
    shutil.copytree(source, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True, "top_k": 0}))
    return folder


@pytest.mark.parametrize("real", [False, True])
def test_transformers_serve_gives_the_greedy_responses_of_this_process(
    tmp_path: Path, prompts: DataConfig, request: pytest.FixtureRequest, real: bool
) -> None:
    """Tests a random and a pretrained model. Responses at temperature 1 differ from each other."""
    shared = request.getfixturevalue("shared") if real else Path()
    source = shared / "models" / "stories260k" if real else request.getfixturevalue("model_folder")
    folder = sampling_copy(source, tmp_path / "model")
    name, greedy, random = str(folder), Sampling(1, 6, temperature=0), Sampling(2, 6, seed=1)
    with transformers_serve(folder) as url:
        server = Client(url, name, concurrency=3)
        remote = samples.run(SampleOptions(name, prompts, greedy, server=server), tmp_path / "r.jsonl", QUIET)
        sampled = rows(samples.run(SampleOptions(name, prompts, random, server=server), tmp_path / "w.jsonl", QUIET))
    local = samples.run(SampleOptions(name, prompts, greedy), tmp_path / "l.jsonl", QUIET)
    for far, near in zip(rows(remote), rows(local), strict=True):
        if real:  # the server decodes without the prompt, so with SentencePiece a response loses its first space
            near["responses"] = [text.lstrip() for text in near["responses"]]
        assert far["responses"] == near["responses"]
    assert len({text for row in sampled for text in row["responses"]}) > 4
    assert all(n <= 6 for row in sampled for n in row["tokens"])


@pytest.fixture
def faulty() -> Iterator[Any]:
    pytest.importorskip("openai")
    with serving(Faulty, failures=[], seen=[], always={}) as handler:
        yield handler


@pytest.mark.parametrize(
    "failure", ["429", "500", "503", "408", "slow", "garbage", "empty", "list", "null", "dict", "drop"]
)
def test_a_failed_request_is_retried(tmp_path: Path, prompts: DataConfig, faulty: Any, failure: str) -> None:
    faulty.failures += [failure] * 3
    server = Client(faulty.url, "m", concurrency=2, pause_s=0.01, timeout_s=0.7)
    out = samples.run(SampleOptions("m", prompts, Sampling(2, 5), server=server), tmp_path / "s.jsonl", QUIET)
    assert [row["responses"] for row in rows(out)] == [[f" to {p}"] * 2 for p in PROMPTS]
    assert len(faulty.seen) == 8 + 3


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "0", "soon"])
def test_an_invalid_retry_after_header_is_ignored(tmp_path: Path, prompts: DataConfig, faulty: Any, value: str) -> None:
    faulty.failures += ["429"] * 2
    faulty.retry_after = value
    server = Client(faulty.url, "m", concurrency=2, pause_s=0.01)
    out = samples.run(SampleOptions("m", prompts, Sampling(1, 5), server=server), tmp_path / "s.jsonl", QUIET)
    assert len(rows(out)) == 4


def test_a_lone_surrogate_in_a_reply_is_replaced(tmp_path: Path, prompts: DataConfig, faulty: Any) -> None:
    """JSON can hold a lone surrogate, but a UTF-8 file cannot."""
    faulty.always = {"a dog": "half"}
    server = Client(faulty.url, "m", concurrency=1)
    lines = rows(samples.run(SampleOptions("m", prompts, Sampling(1, 5), server=server), tmp_path / "s.jsonl", QUIET))
    assert (lines[1]["responses"], lines[1]["tokens"]) == (["hi \ufffd"], [0])
    assert len(faulty.seen) == 4


def test_a_prompt_with_a_lone_surrogate_is_refused(faulty: Any) -> None:
    with pytest.raises(RefusedError, match="lone surrogate"):
        replies_to(Client(faulty.url, "m"), "the \ud83d")
    assert faulty.seen == []


@pytest.mark.parametrize("where", ["waiting", "saving"])
def test_replies_to_pending_requests_are_saved_after_ctrl_c(
    tmp_path: Path, faulty: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The same command then requests only the others."""
    data = data_of(tmp_path / "p.jsonl", [f"p{i}" for i in range(12)])
    faulty.failures += ["", *["late"] * 11]
    options = SampleOptions("m", data, Sampling(1, 5), server=Client(faulty.url, "m", concurrency=4))
    with monkeypatch.context() as patch:
        owner, name = {"waiting": (client_module, "wait"), "saving": (samples.Journal, "add")}[where]
        original, calls = getattr(owner, name), 0

        def interrupt(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:  # the journal's first row is the identity
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        patch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            samples.run(options, tmp_path / "s.jsonl", QUIET)
    assert 4 <= faulty.answered < 12
    assert saved_in(tmp_path / "s.jsonl.part") == faulty.answered
    assert len(rows(samples.run(options, tmp_path / "s.jsonl", QUIET))) == 12
    assert len(faulty.seen) == 12


def test_run_all_returns_pending_results_after_an_interrupt(faulty: Any) -> None:
    """The interrupt is raised after the last of them."""
    server = Client(faulty.url, "m", concurrency=3)
    faulty.failures += ["", *["late"] * 9]
    jobs = [lambda i=i: server.complete(f"p{i}", max_tokens=1) for i in range(9)]
    results = server.run_all(jobs)
    received = [next(results), results.throw(KeyboardInterrupt)]
    with pytest.raises(KeyboardInterrupt):
        received.extend(results)
    assert len(received) == len(faulty.seen) == faulty.answered == 3
    assert all(reply.text == f" to p{number}" for number, reply in received)


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_refused_prompt_is_dropped_and_counted(
    tmp_path: Path, prompts: DataConfig, faulty: Any, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty.always = {"a dog": status}
    server = Client(faulty.url, "m", concurrency=1)
    options = SampleOptions("m", prompts, Sampling(3, 5), server=server)
    out = samples.run(options, tmp_path / "s.jsonl", Display())
    assert [row["prompt"] for row in rows(out)] == [p for p in PROMPTS if p != "a dog"]
    output = capsys.readouterr().err
    assert f"dropped 1 (line 2): the server refused the request: {status} maximum context length is 512" in output
    assert len(faulty.seen) == 3 * 3 + 1  # a refused prompt is sent once
    samples.run(options, out, QUIET)
    assert len(faulty.seen) == 3 * 3 + 1


def test_it_is_an_error_if_every_prompt_is_refused(tmp_path: Path, prompts: DataConfig, faulty: Any) -> None:
    faulty.failures += ["400"] * 4
    server = Client(faulty.url, "m")
    with pytest.raises(RefusedError, match="400 maximum context length is 512") as error:
        samples.run(SampleOptions("m", prompts, Sampling(1, 5), server=server), tmp_path / "s.jsonl", QUIET)
    assert error.value.exit_code == 2
    # the failed command leaves no file that would block another one
    samples.run(SampleOptions("m", prompts, Sampling(1, 6), server=server), tmp_path / "s.jsonl", QUIET)


def test_a_prompt_that_always_fails_does_not_block_the_others(tmp_path: Path, prompts: DataConfig, faulty: Any) -> None:
    faulty.always = {"the cat": "500"}
    server = Client(faulty.url, "m", concurrency=1, attempts=2, pause_s=0.01)
    options = SampleOptions("m", prompts, Sampling(2, 5), server=server)
    with pytest.raises(IncompleteError, match="2 of 8 responses are missing: the request failed after 2 attempts"):
        samples.run(options, tmp_path / "s.jsonl", QUIET)
    assert saved_in(tmp_path / "s.jsonl.part") == 6
    faulty.always = {}
    assert len(rows(samples.run(options, tmp_path / "s.jsonl", QUIET))) == 4
    assert len(faulty.seen) == 2 * 2 + 6 + 2


def test_the_structure_of_an_unexpected_reply_is_reported(faulty: Any) -> None:
    faulty.always = {"x": "dict"}
    with pytest.raises(
        IncompleteError, match="the request failed after 2 attempts: the reply has an unexpected structure: KeyError"
    ):
        replies_to(Client(faulty.url, "m", attempts=2, pause_s=0.01), "x")


def test_after_several_failures_in_a_row_no_more_requests_are_sent(
    tmp_path: Path, prompts: DataConfig, faulty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next command requests the failed responses last, so it gets further."""
    monkeypatch.setattr(client_module, "MAX_FAILURES_IN_A_ROW", 3)
    faulty.always = dict.fromkeys(PROMPTS[:2], "500")
    server = Client(faulty.url, "m", concurrency=1, attempts=1)
    options = SampleOptions("m", prompts, Sampling(2, 5), server=server)
    for saved in (0, 4):
        faulty.seen.clear()
        with pytest.raises(IncompleteError, match=f"{8 - saved} of 8 responses are missing"):
            samples.run(options, tmp_path / "s.jsonl", QUIET)
        assert saved_in(tmp_path / "s.jsonl.part") == saved
    assert [body["prompt"] for body in faulty.seen][:4] == [PROMPTS[1], *[PROMPTS[2]] * 2, PROMPTS[3]]


def test_chat_prompts_are_sent_as_messages(tmp_path: Path, faulty: Any) -> None:
    chat = [{"role": "system", "content": "be short"}, {"role": "user", "content": "the cat?"}]
    data = data_of(tmp_path / "p.jsonl", [chat, "a dog"])
    options = SampleOptions("m", data, Sampling(2, 5, seed=3), server=Client(faulty.url, "m", concurrency=1))
    lines = rows(samples.run(options, tmp_path / "s.jsonl", QUIET))
    assert [row["prompt"] for row in lines] == [chat, "a dog"]
    assert [row["responses"] for row in lines] == [["reply to the cat?"] * 2, [" to a dog"] * 2]
    requests = [body for body in faulty.seen if "messages" in body]
    assert [body["messages"] for body in requests] == [chat, chat]
    assert len({body["seed"] for body in requests}) == 2
    samples.run(replace(options, sampling=Sampling(3, 5, seed=3)), tmp_path / "s.jsonl", QUIET)
    assert len(faulty.seen) == 4 + 2


def test_a_larger_n_or_more_prompts_request_only_missing_responses(
    tmp_path: Path, prompts: DataConfig, faulty: Any
) -> None:
    """n and the prompts grow and shrink, but no response is requested twice."""
    server = Client(faulty.url, "m", concurrency=1)
    more = data_of(tmp_path / "more.jsonl", ["new", *PROMPTS])
    out = tmp_path / "s.jsonl"

    def requests(n: int, data: DataConfig, max_prompts: int | None = None) -> int:
        faulty.seen.clear()
        options = SampleOptions("m", data, Sampling(n, 5), max_prompts, server=server)
        samples.run(options, out, QUIET)
        assert all(len(row["responses"]) == n for row in rows(out))
        count = len(faulty.seen)
        samples.run(options, out, QUIET)
        assert len(faulty.seen) == count
        return count

    assert requests(2, prompts, 3) == 6
    assert requests(4, prompts, 3) == 6
    assert requests(4, prompts) == 4
    assert requests(4, more) == 4
    assert [row["prompt"] for row in rows(out)] == ["new", *PROMPTS]
    assert not out.with_name("s.jsonl.part").exists()
    assert requests(1, more, 2) == 0
    assert requests(5, prompts) == 4
    assert requests(5, more) == 1
    with pytest.raises(RunError, match="samples with different settings"):
        samples.run(SampleOptions("m", more, Sampling(5, 5, temperature=0.5), server=server), out, QUIET)


def test_a_resumed_command_requests_only_missing_responses(tmp_path: Path, prompts: DataConfig, faulty: Any) -> None:
    """The server fails after three replies: exit code 9, and the replies are saved."""
    faulty.failures += ["", "", "", *["500"] * 100]
    server = Client(faulty.url, "m", concurrency=1, attempts=2, pause_s=0.01)
    options = SampleOptions("m", prompts, Sampling(2, 5), server=server)
    with pytest.raises(IncompleteError, match="the request failed after 2 attempts") as error:
        samples.run(options, tmp_path / "s.jsonl", QUIET)
    assert error.value.exit_code == 9
    assert saved_in(tmp_path / "s.jsonl.part") == 3
    faulty.failures.clear()
    before = len(faulty.seen)
    out = samples.run(options, tmp_path / "s.jsonl", QUIET)
    assert len(faulty.seen) - before == 5
    assert len(rows(out)) == 4
    seeds = {(body["prompt"], body["seed"]) for body in faulty.seen}
    assert len(seeds) == 8


def test_identical_responses_to_each_prompt_cause_a_warning(
    tmp_path: Path, prompts: DataConfig, faulty: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Client(faulty.url, "m")
    samples.run(SampleOptions("m", prompts, Sampling(3, 5), server=server), tmp_path / "s.jsonl", Display())
    assert "the server does not sample" in capsys.readouterr().err


def test_a_request_refused_with_status_401_is_not_retried(tmp_path: Path, prompts: DataConfig, faulty: Any) -> None:
    faulty.failures += ["401"]
    server = Client(faulty.url, "m", concurrency=1)
    with pytest.raises(ConfigError, match="the server refused the request: 401"):
        samples.run(SampleOptions("m", prompts, Sampling(1, 5), server=server), tmp_path / "s.jsonl", QUIET)
    assert len(faulty.seen) == 1


def test_a_missing_api_key_is_reported_and_a_key_is_never_saved(
    tmp_path: Path, prompts: DataConfig, faulty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Client(faulty.url, "m", key_env="MY_KEY")
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        samples.run(SampleOptions("m", prompts, Sampling(1, 5), server=server), tmp_path / "s.jsonl", QUIET)
    monkeypatch.setenv("MY_KEY", "secret-123")
    server = Client(faulty.url, "m", key_env="MY_KEY")
    samples.run(SampleOptions("m", prompts, Sampling(1, 5), server=server), tmp_path / "s.jsonl", QUIET)
    assert not any("secret-123" in path.read_text() for path in tmp_path.iterdir())


def test_the_option_timeout_reaches_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float] = []
    for module in (samples, winrate):
        monkeypatch.setattr(module, "run", lambda options, *_: timeouts.append(options.server.timeout_s))
    sample = ["sample", "--model", "m", "--prompts", "p.jsonl", "--server", "http://127.0.0.1:1"]
    judge = [
        "eval",
        "winrate",
        "--policy",
        "m",
        "--data",
        "d.jsonl",
        "--judge",
        "m",
        "--judge-url",
        "http://127.0.0.1:1",
    ]
    assert [run([*command, *more]) for command in (sample, judge) for more in ([], ["--timeout", "900"])] == [0] * 4
    assert timeouts == [120, 900, 120, 900]


def test_a_request_has_the_settings_of_the_options_and_of_the_server(
    tmp_path: Path, prompts: DataConfig, faulty: Any
) -> None:
    """Settings of the server are added or override the options; null removes one."""
    settings = {"top_p": None, "top_k": 3, "min_p": 0.1}
    for number, (more, expected) in enumerate(
        [({}, {"top_p": 0.9, "top_k": 7}), (settings, {"top_k": 3, "min_p": 0.1})]
    ):
        server = Client(faulty.url, "m", settings=more)
        options = SampleOptions("m", prompts, Sampling(1, 5, temperature=0.5, top_p=0.9, top_k=7), 1, server=server)
        samples.run(options, tmp_path / f"{number}.jsonl", QUIET)
        body = faulty.seen[-1]
        assert body["seed"] > 0
        rest = {key: value for key, value in body.items() if key not in ("seed", "model", "prompt")}
        assert rest == {"temperature": 0.5, "max_tokens": 5, **expected}


def test_one_seed_for_all_responses_is_refused(tmp_path: Path, prompts: DataConfig, faulty: Any) -> None:
    options = SampleOptions("m", prompts, Sampling(2, 5), server=Client(faulty.url, "m", settings={"seed": 1}))
    with pytest.raises(ConfigError, match="one seed for all responses"):
        samples.run(options, tmp_path / "s.jsonl", QUIET)
    assert faulty.seen == []


@pytest.mark.parametrize("options", [["--as-chat"], ["--chat-template-kwargs", '{"a": 1}'], ["data.as_chat=true"]])
def test_chat_options_are_refused_with_a_server(
    prompts: DataConfig, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "--model", "m", "--prompts", str(prompts.train), "--server", "http://127.0.0.1:1"]
    assert run([*command, *options]) == 2
    output = capsys.readouterr().err
    assert "which applies its own chat template" in output
    advice = output.partition("--server-settings '")[2].partition("'")[0]
    assert parse_settings(advice.replace("...", '"a": 1'), "--server-settings") == {"chat_template_kwargs": {"a": 1}}


def test_a_slow_body_of_an_error_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The openai library passes on the error of its HTTP client as it is."""
    import httpx2

    calls: list[int] = []

    def create(*_: Any) -> Any:
        calls.append(1)
        raise httpx2.ReadTimeout("the answer took too long")

    monkeypatch.setattr(Client, "_create", create)
    with pytest.raises(IncompleteError, match=r"after 2 attempts: .*took too long"):
        Client("http://127.0.0.1:1", "m", attempts=2, pause_s=0.0).complete("a")
