"""preftune sample from a server: from `transformers serve`, and from one that fails in every way."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.servers import Faulty, serving

import preftune.client as server_module
from preftune.cli.main import run
from preftune.client import Client, RefusedError, Reply
from preftune.errors import ConfigError, IncompleteError, RunError
from preftune.model.generate import Sampling
from preftune.train.display import Display
from preftune.workflows import sample as samples
from preftune.workflows import winrate
from preftune.workflows.sample import SampleOptions

PROMPTS = ["the cat", "a dog", "once upon a time", "we can"]
QUIET = Display(quiet=True)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return str(write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": p} for p in PROMPTS]))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def asked(server: Client, *prompts: str) -> list[tuple[int, Reply]]:
    """What a server answers."""
    return list(server.run_all([lambda p=p: server.complete(p) for p in prompts]))  # type: ignore[misc]


def kept_in(part: Path) -> int:
    """Responses in a journal."""
    return sum("text" in row for row in rows(part))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def sampling(source: Path, folder: Path) -> Path:
    """A copy of a model, which `transformers serve` samples from only if its own settings say so."""
    shutil.copytree(source, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True, "top_k": 0}))
    return folder


@contextmanager
def transformers_serve(folder: Path) -> Iterator[str]:
    """A process of its own with the model in `folder`."""
    pytest.importorskip("fastapi")
    port = free_port()
    code = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-c", code, "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
                break
            except OSError:
                assert process.poll() is None, "transformers serve ended"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("real", [False, True])
def test_transformers_serve(tmp_path: Path, prompts: str, request: pytest.FixtureRequest, real: bool) -> None:
    """A real server gives real samples, of a toy and of a pretrained model; greedy ones are those of this process."""
    shared = request.getfixturevalue("shared") if real else Path()
    source = shared / "models" / "stories260k" if real else request.getfixturevalue("model_folder")
    folder = sampling(source, tmp_path / "model")
    name, greedy, warm = str(folder), Sampling(1, 6, temperature=0), Sampling(2, 6, seed=1)
    with transformers_serve(folder) as url:
        server = Client(url, name, concurrency=3)
        remote = samples.run(SampleOptions(name, prompts, greedy, server=server), tmp_path / "r.jsonl", QUIET)
        found = rows(samples.run(SampleOptions(name, prompts, warm, server=server), tmp_path / "w.jsonl", QUIET))
    local = samples.run(SampleOptions(name, prompts, greedy), tmp_path / "l.jsonl", QUIET)
    for far, near in zip(rows(remote), rows(local), strict=True):
        if real:  # SentencePiece: decoded without its prompt, as the server does it, a response loses its first space
            near["responses"] = [text.lstrip() for text in near["responses"]]
        assert far["responses"] == near["responses"]
    assert len({text for row in found for text in row["responses"]}) > 4
    assert all(n <= 6 for row in found for n in row["tokens"])


@pytest.fixture
def faulty() -> Iterator[Any]:
    pytest.importorskip("openai")
    with serving(Faulty, failures=[], seen=[], always={}) as handler:
        yield handler


@pytest.mark.parametrize(
    "failure", ["429", "500", "503", "408", "slow", "garbage", "empty", "list", "null", "dict", "drop"]
)
def test_a_failure_is_asked_again(tmp_path: Path, prompts: str, faulty: Any, failure: str) -> None:
    faulty.failures += [failure] * 3
    server = Client(faulty.url, "m", concurrency=2, pause_s=0.01, timeout_s=0.7)
    out = samples.run(SampleOptions("m", prompts, Sampling(2, 5), server=server), tmp_path / "s.jsonl", QUIET)
    assert [row["responses"] for row in rows(out)] == [[f" to {p}"] * 2 for p in PROMPTS]
    assert len(faulty.seen) == 8 + 3


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "0", "soon"])
def test_a_pause_that_is_none_is_not_taken(tmp_path: Path, prompts: str, faulty: Any, value: str) -> None:
    faulty.failures += ["429"] * 2
    faulty.retry_after = value
    server = Client(faulty.url, "m", concurrency=2, pause_s=0.01)
    out = samples.run(SampleOptions("m", prompts, Sampling(1, 5), server=server), tmp_path / "s.jsonl", QUIET)
    assert len(rows(out)) == 4


def test_half_a_character_is_an_answer(tmp_path: Path, prompts: str, faulty: Any) -> None:
    """JSON can hold a lone surrogate, a file cannot: it is replaced, and the answer is not lost."""
    faulty.always = {"a dog": "half"}
    server = Client(faulty.url, "m", concurrency=1)
    found = rows(samples.run(SampleOptions("m", prompts, Sampling(1, 5), server=server), tmp_path / "s.jsonl", QUIET))
    assert (found[1]["responses"], found[1]["tokens"]) == (["hi \ufffd"], [0])
    assert len(faulty.seen) == 4


def test_a_prompt_with_half_a_character_is_refused(faulty: Any) -> None:
    with pytest.raises(RefusedError, match="lone surrogate"):
        asked(Client(faulty.url, "m"), "the \ud83d")
    assert faulty.seen == []


@pytest.mark.parametrize("where", ["waiting", "keeping"])
def test_ctrl_c_keeps_what_is_under_way(
    tmp_path: Path, faulty: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Every request that the server answered is on disk, wherever the program was; the same command asks the rest."""
    file = str(write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"p{i}"} for i in range(12)]))
    faulty.failures += ["", *["late"] * 11]
    wanted = SampleOptions("m", file, Sampling(1, 5), server=Client(faulty.url, "m", concurrency=4))
    with monkeypatch.context() as patch:
        owner, name = {"waiting": (server_module, "wait"), "keeping": (samples.Journal, "add")}[where]
        real, calls = getattr(owner, name), 0

        def dies(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:  # the journal's first row is the identity
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        patch.setattr(owner, name, dies)
        with pytest.raises(KeyboardInterrupt):
            samples.run(wanted, tmp_path / "s.jsonl", QUIET)
    assert 4 <= faulty.answered < 12
    assert kept_in(tmp_path / "s.jsonl.part") == faulty.answered
    assert len(rows(samples.run(wanted, tmp_path / "s.jsonl", QUIET))) == 12
    assert len(faulty.seen) == 12


def test_who_takes_results_and_stops_gets_what_is_under_way(faulty: Any) -> None:
    """An interrupt while `each` waits: whoever only takes results is handed the rest before it is raised."""
    server = Client(faulty.url, "m", concurrency=3)
    faulty.failures += ["", *["late"] * 9]
    jobs = [lambda i=i: server.complete(f"p{i}", max_tokens=1) for i in range(9)]
    results = server.run_all(jobs)
    taken = [next(results), results.throw(KeyboardInterrupt)]
    with pytest.raises(KeyboardInterrupt):
        taken.extend(results)
    assert len(taken) == len(faulty.seen) == faulty.answered == 3
    assert all(reply.text == f" to p{number}" for number, reply in taken)


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_refused_prompt_is_left_out_and_counted(
    tmp_path: Path, prompts: str, faulty: Any, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty.always = {"a dog": status}
    server = Client(faulty.url, "m", concurrency=1)
    wanted = SampleOptions("m", prompts, Sampling(3, 5), server=server)
    out = samples.run(wanted, tmp_path / "s.jsonl", Display())
    assert [row["prompt"] for row in rows(out)] == [p for p in PROMPTS if p != "a dog"]
    said = capsys.readouterr().err
    assert f"dropped 1 (line 2): the server refused the request: {status} maximum context length is 512" in said
    assert len(faulty.seen) == 3 * 3 + 1  # refused once, the prompt is not sent again
    samples.run(wanted, out, QUIET)
    assert len(faulty.seen) == 3 * 3 + 1


def test_nothing_but_refusals_is_an_error(tmp_path: Path, prompts: str, faulty: Any) -> None:
    faulty.failures += ["400"] * 4
    server = Client(faulty.url, "m")
    with pytest.raises(RefusedError, match="400 maximum context length is 512") as error:
        samples.run(SampleOptions("m", prompts, Sampling(1, 5), server=server), tmp_path / "s.jsonl", QUIET)
    assert error.value.exit_code == 2
    samples.run(
        SampleOptions("m", prompts, Sampling(1, 6), server=server), tmp_path / "s.jsonl", QUIET
    )  # nothing in the way


def test_a_prompt_that_always_fails_does_not_keep_the_others_from_it(tmp_path: Path, prompts: str, faulty: Any) -> None:
    faulty.always = {"the cat": "500"}
    server = Client(faulty.url, "m", concurrency=1, attempts=2, pause_s=0.01)
    wanted = SampleOptions("m", prompts, Sampling(2, 5), server=server)
    with pytest.raises(IncompleteError, match="2 of 8 responses are missing: the request failed after 2 attempts"):
        samples.run(wanted, tmp_path / "s.jsonl", QUIET)
    assert kept_in(tmp_path / "s.jsonl.part") == 6
    faulty.always = {}
    assert len(rows(samples.run(wanted, tmp_path / "s.jsonl", QUIET))) == 4
    assert len(faulty.seen) == 2 * 2 + 6 + 2


def test_an_answer_of_another_shape_is_named(faulty: Any) -> None:
    faulty.always = {"x": "dict"}
    with pytest.raises(
        IncompleteError, match="the request failed after 2 attempts: the reply has an unexpected structure: KeyError"
    ):
        asked(Client(faulty.url, "m", attempts=2, pause_s=0.01), "x")


def test_a_server_that_is_down_is_left_alone(
    tmp_path: Path, prompts: str, faulty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many jobs in a row without an answer; what failed comes last then, so that each call comes further."""
    monkeypatch.setattr(server_module, "MAX_FAILURES_IN_A_ROW", 3)
    faulty.always = dict.fromkeys(PROMPTS[:2], "500")
    server = Client(faulty.url, "m", concurrency=1, attempts=1)
    wanted = SampleOptions("m", prompts, Sampling(2, 5), server=server)
    for kept in (0, 4):
        faulty.seen.clear()
        with pytest.raises(IncompleteError, match=f"{8 - kept} of 8 responses are missing"):
            samples.run(wanted, tmp_path / "s.jsonl", QUIET)
        assert kept_in(tmp_path / "s.jsonl.part") == kept
    assert [body["prompt"] for body in faulty.seen][:4] == [PROMPTS[1], *[PROMPTS[2]] * 2, PROMPTS[3]]


def test_chats_through_a_server(tmp_path: Path, faulty: Any) -> None:
    chat = [{"role": "system", "content": "be short"}, {"role": "user", "content": "the cat?"}]
    file = write_jsonl(tmp_path / "p.jsonl", [{"prompt": chat}, {"prompt": "a dog"}])
    wanted = SampleOptions("m", str(file), Sampling(2, 5, seed=3), server=Client(faulty.url, "m", concurrency=1))
    found = rows(samples.run(wanted, tmp_path / "s.jsonl", QUIET))
    assert [row["prompt"] for row in found] == [chat, "a dog"]
    assert [row["responses"] for row in found] == [["reply to the cat?"] * 2, [" to a dog"] * 2]
    asked = [body for body in faulty.seen if "messages" in body]
    assert [body["messages"] for body in asked] == [chat, chat]
    assert len({body["seed"] for body in asked}) == 2
    samples.run(replace(wanted, sampling=Sampling(3, 5, seed=3)), tmp_path / "s.jsonl", QUIET)
    assert len(faulty.seen) == 4 + 2


def test_more_of_the_same_asks_only_for_what_is_missing(tmp_path: Path, prompts: str, faulty: Any) -> None:
    """n and the prompts grow and shrink; every response is asked for once, and lies where one call would put it."""
    server = Client(faulty.url, "m", concurrency=1)
    more = str(write_jsonl(tmp_path / "more.jsonl", [{"prompt": p} for p in ["new", *PROMPTS]]))
    out = tmp_path / "s.jsonl"

    def made(n: int, file: str, most: int | None = None) -> int:
        faulty.seen.clear()
        sampling = Sampling(n, 5)
        samples.run(SampleOptions("m", file, sampling, most, server=server), out, QUIET)
        assert all(len(row["responses"]) == n for row in rows(out))
        count = len(faulty.seen)
        samples.run(SampleOptions("m", file, sampling, most, server=server), out, QUIET)
        assert len(faulty.seen) == count
        return count

    assert made(2, prompts, 3) == 6
    assert made(4, prompts, 3) == 6
    assert made(4, prompts) == 4
    assert made(4, more) == 4
    assert [row["prompt"] for row in rows(out)] == ["new", *PROMPTS]
    assert not out.with_name("s.jsonl.part").exists()
    assert made(1, more, 2) == 0
    assert made(5, prompts) == 4
    assert made(5, more) == 1
    with pytest.raises(RunError, match="holds other samples"):
        samples.run(SampleOptions("m", more, Sampling(5, 5, temperature=0.5), server=server), out, QUIET)


def test_nothing_that_was_paid_for_is_asked_again(tmp_path: Path, prompts: str, faulty: Any) -> None:
    """The server dies in the middle: what it answered is on disk, exit 9; then only the rest is asked for."""
    faulty.failures += ["", "", "", *["500"] * 100]
    server = Client(faulty.url, "m", concurrency=1, attempts=2, pause_s=0.01)
    wanted = SampleOptions("m", prompts, Sampling(2, 5), server=server)
    with pytest.raises(IncompleteError, match="the request failed after 2 attempts") as error:
        samples.run(wanted, tmp_path / "s.jsonl", QUIET)
    assert error.value.exit_code == 9
    assert kept_in(tmp_path / "s.jsonl.part") == 3
    faulty.failures.clear()
    before = len(faulty.seen)
    out = samples.run(wanted, tmp_path / "s.jsonl", QUIET)
    assert len(faulty.seen) - before == 5
    assert len(rows(out)) == 4
    seeds = {(body["prompt"], body["seed"]) for body in faulty.seen}
    assert len(seeds) == 8


def test_a_server_that_does_not_sample_is_named(
    tmp_path: Path, prompts: str, faulty: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Client(faulty.url, "m")
    samples.run(SampleOptions("m", prompts, Sampling(3, 5), server=server), tmp_path / "s.jsonl", Display())
    assert "the server does not sample" in capsys.readouterr().err


def test_a_refusal_is_not_asked_again(tmp_path: Path, prompts: str, faulty: Any) -> None:
    faulty.failures += ["401"]
    server = Client(faulty.url, "m", concurrency=1)
    with pytest.raises(ConfigError, match="the server refused the request: 401"):
        samples.run(SampleOptions("m", prompts, Sampling(1, 5), server=server), tmp_path / "s.jsonl", QUIET)
    assert len(faulty.seen) == 1


def test_the_key_is_named_and_not_kept(
    tmp_path: Path, prompts: str, faulty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Client(faulty.url, "m", key_env="MY_KEY")
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        samples.run(SampleOptions("m", prompts, Sampling(1, 5), server=server), tmp_path / "s.jsonl", QUIET)
    monkeypatch.setenv("MY_KEY", "secret-123")
    server = Client(faulty.url, "m", key_env="MY_KEY")
    samples.run(SampleOptions("m", prompts, Sampling(1, 5), server=server), tmp_path / "s.jsonl", QUIET)
    assert not any("secret-123" in path.read_text() for path in tmp_path.iterdir())


def test_how_long_an_answer_may_take_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    for module in (samples, winrate):
        monkeypatch.setattr(module, "run", lambda wanted, *_: found.append(wanted.server.timeout_s))
    long = ["--timeout", "900"]
    drawn = ["sample", "--model", "m", "--prompts", "p.jsonl", "--server", "http://127.0.0.1:1"]
    judged = [
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
    assert [run([*words, *more]) for words in (drawn, judged) for more in ([], long)] == [0] * 4
    assert found == [120, 900, 120, 900]


def test_what_a_request_says(tmp_path: Path, prompts: str, faulty: Any) -> None:
    """All of our settings, as the options say; the server's own come besides or instead, and null takes one out."""
    settings = {"top_p": None, "top_k": 3, "min_p": 0.1}
    for number, (more, expected) in enumerate(
        [({}, {"top_p": 0.9, "top_k": 7}), (settings, {"top_k": 3, "min_p": 0.1})]
    ):
        server = Client(faulty.url, "m", settings=more)
        wanted = SampleOptions("m", prompts, Sampling(1, 5, temperature=0.5, top_p=0.9, top_k=7), 1, server=server)
        samples.run(wanted, tmp_path / f"{number}.jsonl", QUIET)
        body = faulty.seen[-1]
        assert body["seed"] > 0
        rest = {key: value for key, value in body.items() if key not in ("seed", "model", "prompt")}
        assert rest == {"temperature": 0.5, "max_tokens": 5, **expected}


def test_one_seed_for_all_responses_is_refused(tmp_path: Path, prompts: str, faulty: Any) -> None:
    wanted = SampleOptions("m", prompts, Sampling(2, 5), server=Client(faulty.url, "m", settings={"seed": 1}))
    with pytest.raises(ConfigError, match="one seed for all responses"):
        samples.run(wanted, tmp_path / "s.jsonl", QUIET)
    assert faulty.seen == []
