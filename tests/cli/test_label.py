"""preftune label in a real browser: judged with keys, killed in the middle, resumed; and stopped by signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.browser import Browser, executable
from tests.conftest import write_jsonl

EVIL = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
KEYS = ("a", "b", "t", "s", "ArrowLeft", "ArrowRight", "ArrowDown", "ArrowUp", "A", "B")
VERDICTS = {
    **dict.fromkeys(("a", "A", "ArrowLeft"), "left"),
    **dict.fromkeys(("b", "B", "ArrowRight"), "right"),
    **dict.fromkeys(("t", "ArrowDown"), "tie"),
    **dict.fromkeys(("s", "ArrowUp"), "skip"),
}
ROWS = [{"prompt": f"prompt {i}", "responses": [f"{EVIL}\none {i}", f"two {i}"]} for i in range(20)]


@contextmanager
def labelling(file: Path, out: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command and the address that it has printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "preftune", "label", str(file), "--out", str(out), *more],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    try:
        assert process.stderr
        lines = iter(process.stderr.readline, "")
        url = next((found_url[0] for line in lines if (found_url := re.search(r"http://\S+", line))), "")
        assert url, process.wait()
        yield process, url
    finally:
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()


def verdicts_of(out: Path) -> list[dict[str, str]]:
    """The verdicts in the journal that are not withdrawn, in order."""
    rows: list[dict[str, str]] = []
    for line in out.with_name("prefs.verdicts.jsonl").read_text().splitlines()[1:]:
        row = json.loads(line)
        rows = [r for r in rows if r["pair"] != row["pair"]] if row["verdict"] == "undo" else [*rows, row]
    return rows


def side(row: dict[str, str]) -> str:
    if row["verdict"] in ("tie", "skip"):
        return row["verdict"]
    return "left" if row["verdict"] == row["left"] else "right"


def count(browser: Browser, number: int) -> None:
    browser.wait_for(f"document.querySelector('#count').textContent === '{number} of 20'")


def judge(browser: Browser, first: int, last: int) -> None:
    for number in range(first, last):
        shown = browser.value("document.querySelector('#prompt').innerText")
        assert shown.endswith(f"prompt {number}"), shown
        browser.press(KEYS[number % len(KEYS)])
        count(browser, number + 1)


@pytest.mark.skipif(not executable(), reason="no Chromium or Chrome: install chromium, or set PREFTUNE_BROWSER")
def test_twenty_comparisons_in_a_browser_survive_a_kill(tmp_path: Path) -> None:
    file, out = write_jsonl(tmp_path / "samples.jsonl", ROWS), tmp_path / "prefs.jsonl"
    with Browser() as browser:
        with labelling(file, out) as (process, url):
            browser.open(url)
            browser.wait_for("document.activeElement.id === 'name'")
            browser.type("Ana")
            browser.press("Enter")
            count(browser, 0)
            judge(browser, 0, 8)
            browser.press("u")
            count(browser, 7)
            browser.press("c")
            browser.wait_for("document.activeElement.id === 'comment'")
            browser.type("b is rude")  # keys in the text field are not verdicts
            browser.press("Escape")
            browser.press(KEYS[7])
            count(browser, 8)
            judge(browser, 8, 9)
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(url.rsplit("/", 2)[0] + "/")
            browser.press("a")
            time.sleep(0.01)  # the kill meets the tenth verdict anywhere on its way
            process.send_signal(signal.SIGKILL)
            process.wait()
            stopped = "document.querySelector('#message').textContent.startsWith('The command has stopped')"
            deadline = time.monotonic() + 60
            while not browser.value(stopped):  # a key is ignored while the page waits for an answer
                assert time.monotonic() < deadline
                browser.press("b")
                time.sleep(0.05)
        before = verdicts_of(out)
        assert len(before) in (9, 10)
        assert [side(row) for row in before[:9]] == [VERDICTS[KEYS[i % 10]] for i in range(9)]
        assert before[7]["comment"] == "b is rude"
        with labelling(file, out) as (process, url):
            browser.open(url)
            browser.wait_for("document.activeElement.id === 'name'")
            browser.type("Ana")
            browser.press("Enter")
            count(browser, len(before))
            judge(browser, len(before), 20)
            assert browser.value("document.title") == "Which response is better?"
            browser.wait_for("document.activeElement.id === 'finish'")
            browser.click("#finish")
            assert process.wait(20) == 0
        assert [url for url in browser.requested() if not url.startswith("http://127.0.0.1:")] == []
        assert [text for text in browser.problems() if "ERR_" not in text] == []
    rows = verdicts_of(out)
    assert rows[: len(before)] == before
    assert [row["origin"] for row in rows] == [f"{file}:{i + 1}" for i in range(20)]
    preferred = [json.loads(line) for line in out.read_text().splitlines()]
    decided = [row for row in rows if row["verdict"] in ("first", "second")]
    assert [row["responses"][row["judgements"][0]["better"]] for row in preferred] == [
        ROWS[int(row["origin"].rpartition(":")[2]) - 1]["responses"][row["verdict"] == "second"] for row in decided
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_command_and_the_data_are_written(tmp_path: Path, number: signal.Signals) -> None:
    file, out = write_jsonl(tmp_path / "samples.jsonl", ROWS[:2]), tmp_path / "prefs.jsonl"
    with labelling(file, out, "--annotator", "ana") as (process, url):

        def judge_one() -> None:
            state = json.load(urllib.request.urlopen(url + "state"))
            body = json.dumps({"pair": state["pair"]["id"], "choice": "a"}).encode()
            urllib.request.urlopen(urllib.request.Request(url + "verdict", body, {"Origin": url.rsplit("/", 2)[0]}))

        judge_one()
        process.send_signal(number)
        assert process.wait(20) == 75
    assert len(out.read_text().splitlines()) == 1
    with labelling(file, out, "--annotator", "ana") as (process, url):
        judge_one()
        process.send_signal(number)
        assert process.wait(20) == 0  # nothing is left to judge
    assert len(out.read_text().splitlines()) == 2


def test_a_signal_ends_the_wait_of_iterate_for_people(tmp_path: Path, model_folder: Path) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": text} for text in ("the cat", "a dog")])
    settings = [f"model.path={model_folder}", "reward=people", f"data.train={prompts}", "rounds=1", "sample.n=2"]
    (tmp_path / "run.yaml").write_text("sample: {max_new_tokens: 6, evaluation: 1}\n")
    command = [sys.executable, "-m", "preftune", "iterate", str(tmp_path / "run.yaml"), *settings]
    with subprocess.Popen(
        [*command, f"out={tmp_path / 'run'}", "--quiet"], stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stderr
        assert any("http://127.0.0.1:" in line for line in iter(process.stderr.readline, ""))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 75
        assert "rerun the same command" in process.stderr.read()
    assert not (tmp_path / "run" / "round-01" / "prefs.jsonl").exists()
    assert (tmp_path / "run" / "round-01" / "judged.verdicts.jsonl").exists()
