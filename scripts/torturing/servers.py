"""Hostile servers, and hostile clients of the label page: bounded time, no secret and no control character."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import socket
import time
from pathlib import Path

from preftune import bounded_http, client
from torturing import forks
from torturing.hostile import WAYS, serving
from torturing.results import Result
from torturing.world import World

KEY = "torture-key-0123456789"
VARIABLE = "TORTURE_KEY"
TIMEOUT_S = 0.4  # of one answer
ALLOWED_S = 45.0  # for all attempts, on a busy machine
SMALL = ("--timeout", str(TIMEOUT_S), "--api-key-env", VARIABLE)
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
EXPECTED = (0, 2, 3, 9)


def case(world: World, draw: random.Random, number: int) -> list[Result]:
    """Use one server, or attack the page for labels."""
    folder = world.folder(f"server-{number}")
    if draw.random() < 1 / 6:
        result = label_page(folder, draw, number)
    else:
        with serving(draw.randrange(2**32)) as url:
            result = one_server(folder, draw, number, url)
    if not result.failure:
        world.remove(folder)
    return [result]


def one_server(folder: Path, draw: random.Random, number: int, url: str) -> Result:
    """Run one command with one kind of server, and look for the key and for control characters."""
    way = draw.choice(WAYS).__name__
    address = f"{url}/{way}/v1"
    prompts = "../inputs/pairs.jsonl"
    judge = f"judge:{address},m"
    commands: dict[str, list[str]] = {
        "sample": ["sample", "--model", "m", "--prompts", prompts, "--server", address, "--max-prompts", "3", *SMALL],
        "eval winrate": [
            *("eval", "winrate", "--policy", "../inputs/model", "--data", prompts, "--judge", "m", "--judge-url"),
            *(address, "--max-prompts", "2", "--temperatures", "1", "--max-new-tokens", "4", *SMALL),
        ],
        "score": ["score", "--data", prompts, "--reward", judge, "data.limit=2"],
        "chat": ["chat", "m", "--server", address, *SMALL],
    }
    name = draw.choice(list(commands))
    (folder / "stdin.txt").write_text("hello\nhow are you\n")
    done = forks.run(commands[name], folder, lambda: prepare(folder))
    failure = failure_of(done, folder)
    return Result(name, way, failure and f"{way}: {failure}", number)


def prepare(folder: Path) -> None:
    """Set the key, a short pause between attempts, and lines to say."""
    os.environ[VARIABLE] = os.environ["OPENAI_API_KEY"] = KEY
    client.MAX_PAUSE_S = 0.01
    create = bounded_http.BoundedClient.__init__  # judge:URL,MODEL has no option for the time limit
    setattr(bounded_http.BoundedClient, "__init__", lambda self, _: create(self, TIMEOUT_S))  # noqa: B010
    os.dup2(os.open(folder / "stdin.txt", os.O_RDONLY), 0)


def failure_of(done: forks.Ended, folder: Path) -> str:
    """Return what a hostile server has achieved, or ""."""
    written = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    leaked = [name for name in written if KEY.encode() in (folder / name).read_bytes()]
    match = CONTROLS.search(done.output)
    checks = {
        done.crashed: bool(done.crashed),
        f"exit code {done.code}: {done.output.strip()[-200:]}": done.code not in EXPECTED,
        f"the key is in {', '.join(leaked)}": bool(leaked),
        "the key was printed": KEY in done.output,
        f"the control character {match[0]!r} was printed" if match else "": bool(match),
        f"it took {done.seconds:.0f} s": done.seconds > ALLOWED_S,
    }
    return "; ".join(text for text, is_so in checks.items() if is_so)


def label_page(folder: Path, draw: random.Random, number: int) -> Result:
    """Send odd requests to the page of `preftune label`. It must still answer, and end on SIGTERM."""
    child = forks.start(["label", "../inputs/samples.jsonl", "--out", "prefs.jsonl"], folder)
    address = wait_for_address(child)
    if address is None:
        child.signal(signal.SIGKILL)
        return Result("label page", "no page", f"no address: {child.wait().output[-200:]}", number)
    port, token = address
    for _ in range(6):
        attack(port, token, draw)
    answer = state_of(port, token)
    child.signal(signal.SIGTERM)
    done = child.wait()
    failure = done.crashed or ("" if done.code in (0, 75) else f"exit code {done.code}: {done.output[-200:]}")
    failure = failure or ("" if answer == 200 else f"the page answers {answer} after the attack")
    return Result("label page", "answers", failure, number)


def wait_for_address(child: forks.Child) -> tuple[int, str] | None:
    """Return the port and the token of the page, once they are printed."""
    while child.ended_code() is None and child.cpu_s() < forks.LIMIT_S:
        match = re.search(r"http://[\w.]+:(\d+)/([\w-]+)/", child.output.read_text() if child.output.exists() else "")
        if match:
            return int(match[1]), match[2]
        time.sleep(forks.POLL_S * 5)
    return None


def state_of(port: int, token: str) -> int:
    """Return the status of a correct request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", f"/{token}/state?annotator=me")
    return connection.getresponse().status


def attack(port: int, token: str, draw: random.Random) -> None:
    """Send one odd request, and read what comes back."""
    path = draw.choice([f"/{token}/verdict", f"/{token}/undo", f"/{token}/state", "/", "/../../etc/passwd", "x" * 9000])
    values: list[object] = [
        None,
        1,
        "x",
        [],
        {"annotator": "x" * 10**5},
        {"annotator": "\x1b[31mme\x00", "pair": [], "choice": {}},
    ]
    body = draw.choice([json.dumps(draw.choice(values)).encode(), b"[" * 60_000, bytes(range(256)), b""])
    length = draw.choice([len(body), 10**12, -1, 0, len(body) + 50])
    method = draw.choice(["GET", "POST", "PUT", "HEAD", "\x00", "POST"])
    host = draw.choice([f"127.0.0.1:{port}", "evil.example", "", "localhost"])
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\norigin: http://{host}\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5) as wire:
            wire.sendall(head.encode("latin-1", "replace") + body)
            wire.recv(4096)
    except OSError:
        return
