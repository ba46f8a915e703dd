"""The responses that a run saves, and how its report and its last lines show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PAIRS, write_jsonl
from tests.unit.lifecycle.test_monitor import run
from transformers import AutoModelForCausalLM

from preftune.model.generate import Sampling, sample
from preftune.report.samples import before_and_after, comparisons, one_line


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Path, list[str]]:
    """The folder of a run, and its messages."""
    folder = tmp_path_factory.mktemp("tuned")
    messages = run(folder, model_folder)
    return folder / "run", messages


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_samples_of_both_ends_of_a_run_are_those_of_the_models(
    tuned: tuple[Path, list[str]], model_folder: Path, tokenizer: Any
) -> None:
    folder, _ = tuned
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "data.jsonl", "step-00000000.jsonl", "step-00000004.jsonl"
    ]  # fmt: skip
    for step, source in ((0, model_folder), (4, folder / "final")):
        saved = rows(folder / "samples" / f"step-{step:08d}.jsonl")
        assert len(saved) == 6
        model = AutoModelForCausalLM.from_pretrained(source).eval()
        ids = [tokenizer(row["prompt"])["input_ids"] for row in saved]
        for row, expected in zip(saved, sample(model, tokenizer, ids, Sampling(2, 8)), strict=True):
            assert row["responses"] == list(expected.texts)
            assert row["tokens"] == [len(response) for response in expected.group.response_ids]
            assert row["ended"] == list(expected.ended)


def test_the_responses_of_the_data_are_saved_with_what_they_are(tuned: tuple[Path, list[str]], tokenizer: Any) -> None:
    saved = {row["prompt"]: row for row in rows(tuned[0] / "samples" / "data.jsonl")}
    assert len(saved) == 6
    for pair in PAIRS:
        if pair["prompt"] in saved:
            kinds = {r["kind"]: (r["text"], r["tokens"]) for r in saved[pair["prompt"]]["responses"]}
            lengths = {side: len(tokenizer(pair[side], add_special_tokens=False)["input_ids"]) + 1 for side in kinds}
            assert kinds == {side: (pair[side], lengths[side]) for side in ("chosen", "rejected")}


def test_the_samples_of_a_run_are_read_by_preftune_pairs(tuned: tuple[Path, list[str]], tmp_path: Path) -> None:
    from preftune.cli.main import run as command

    source, out = tuned[0] / "samples" / "step-00000000.jsonl", tmp_path / "prefs.jsonl"
    assert command(["pairs", str(source), "--reward", "length", "--out", str(out), "-q"]) == 0
    assert rows(out)


def test_the_report_and_the_last_lines_show_responses_before_and_after(tuned: tuple[Path, list[str]]) -> None:
    folder, messages = tuned
    page = (folder / "report.html").read_text()
    before, after = (rows(folder / "samples" / f"step-{n:08d}.jsonl")[0] for n in (0, 4))
    assert "Samples before and after" in page
    assert f"step 0: {before['tokens'][0]} tokens" in page
    assert f"step 4: {after['tokens'][0]} tokens" in page
    assert "6 of the 6 prompts" in page
    for pair in PAIRS:
        if pair["prompt"] in (row["prompt"] for row in rows(folder / "samples" / "data.jsonl")):
            assert f">{pair['chosen']}</p>" in page.replace("&#39;", "'")
    start = messages.index("samples before and after:")
    shown = messages[start : start + 7]
    assert shown[1] == f"  prompt: {before['prompt']}"
    assert shown[2].startswith(f"    step 0: {before['tokens'][0]} tokens")
    assert shown[3].startswith(f"    step 4: {after['tokens'][0]} tokens")
    assert one_line(after["responses"][0]) in shown[3]
    assert messages[start + 7].startswith("result: ")
    assert messages[start + 8].startswith("health: ")
    assert messages[start + 9].startswith("done: model in")


def write(folder: Path, name: str, saved: list[dict[str, Any]]) -> None:
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples" / name).write_text("".join(json.dumps(row) + "\n" for row in saved))


def row(prompt: str, text: str, ended: bool = True) -> dict[str, Any]:
    return {"prompt": prompt, "responses": [text, "other"], "ended": [ended, True], "tokens": [3, 4]}


def test_the_first_and_the_last_evaluation_are_compared(tmp_path: Path) -> None:
    """Of three; a prompt that the first one does not have, and a run with a single evaluation."""
    assert comparisons(tmp_path) == []
    write(tmp_path, "step-00000000.jsonl", [row("a", "zero")])
    assert comparisons(tmp_path)[0].responses == (("step 0: 3 tokens", "zero"),)
    assert before_and_after(tmp_path) == []
    write(tmp_path, "step-00000005.jsonl", [row("a", "five")])
    write(tmp_path, "step-00000010.jsonl", [row("b", "new"), row("a", "ten", ended=False)])
    new, old = comparisons(tmp_path, "round")
    assert new.responses == (("round 10: 3 tokens", "new"),)
    assert old.responses == (("round 0: 3 tokens", "zero"), ("round 10: 3 tokens, cut off", "ten"))
    assert [line.strip() for line in before_and_after(tmp_path)[1:]] == [
        "prompt: a", "step 0: 3 tokens: zero", "step 10: 3 tokens, cut off: ten"
    ]  # fmt: skip


def test_a_line_has_no_control_characters_and_is_cut() -> None:
    assert one_line("a\n\nb\x1b[2J c") == "a b [2J c"
    assert one_line("abcdefghij", 8) == "abcde..."
    assert one_line("abcdefghij", 8, from_end=True) == "...fghij"


def test_sft_saves_responses_of_the_model_before_and_after(tmp_path: Path, model_folder: Path, tokenizer: Any) -> None:
    from preftune.cli.main import run as command

    data = write_jsonl(tmp_path / "data.jsonl", PAIRS)
    config = tmp_path / "sft.yaml"
    config.write_text(f"model: {{path: {model_folder}}}\ndata: {{train: {data}, eval: 0.4}}\noptim: {{lr: 1e-2}}\n")
    assert command(["sft", str(config), "samples=2", f"out={tmp_path / 'run'}", "-q"]) == 0
    first, last = (rows(path) for path in sorted((tmp_path / "run" / "samples").glob("step-*.jsonl")))
    for saved, source in ((first, model_folder), (last, tmp_path / "run" / "final")):
        assert len(saved) == 2
        model = AutoModelForCausalLM.from_pretrained(source).eval()
        ids = [tokenizer(one["prompt"])["input_ids"] for one in saved]
        expected = sample(model, tokenizer, ids, Sampling(1, 128))
        assert [one["responses"] for one in saved] == [list(one.texts) for one in expected]
    for one in rows(tmp_path / "run" / "samples" / "data.jsonl"):
        (pair,) = [pair for pair in PAIRS if pair["prompt"] == one["prompt"]]
        assert [(r["kind"], r["text"]) for r in one["responses"]] == [("response", pair["chosen"])]
    assert "Samples before and after" in (tmp_path / "run" / "report.html").read_text()
    assert command(["sft", str(config), "samples=0", f"out={tmp_path / 'none'}", "-q"]) == 0
    assert not (tmp_path / "none" / "samples").exists()


def test_sft_on_plain_texts_has_no_samples(tmp_path: Path, model_folder: Path) -> None:
    """They have no prompt that the model could respond to, unless the tokenizer writes BOS."""
    from preftune.cli.main import run as command

    data = write_jsonl(tmp_path / "data.jsonl", [{"text": pair["chosen"]} for pair in PAIRS])
    config = tmp_path / "sft.yaml"
    config.write_text(f"model: {{path: {model_folder}}}\ndata: {{train: {data}}}\n")
    assert command(["sft", str(config), f"out={tmp_path / 'run'}", "-q"]) == 0
