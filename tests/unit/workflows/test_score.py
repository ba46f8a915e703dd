"""preftune score: RewardBench's figures in both modes, rewards of every kind, the page of tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, make_model, make_tokenizer, write_jsonl
from transformers import AutoModelForCausalLM

from preftune.cli.main import run as command
from preftune.config.schema import DataConfig
from preftune.errors import ConfigError, DataError, ModelError
from preftune.model.load import TEMPLATES
from preftune.report.tokens import ShadedPair, pairs_to_show, write_token_page
from preftune.train.display import Display
from preftune.workflows import score
from preftune.workflows.score import RewardScoreOptions, ScoreOptions

QUIET = Display(quiet=True)
HEAD = "{% for m in messages %}{{ '<s>' if loop.first else '' }}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
TEMPLATE = HEAD + "{% if add_generation_prompt %}assistant:{% endif %}"
BENCH = [
    {"prompt": "the cat", "chosen": "sat on the mat", "rejected": "no", "subset": "math-prm", "id": 1},
    {
        "prompt": "a dog",
        "chosen": "user: a dog\nran",
        "rejected": "<s>user: a dog\nto the hill",
        "subset": "hep-go",
        "id": 2,
    },
    {"prompt": "we can", "chosen": "guess it.", "rejected": "not.", "subset": "hep-go", "id": 3},
    {"prompt": "look at the moon", "chosen": "a house", "rejected": "a house in the wood", "subset": "xstest", "id": 4},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy and its reference, with a chat template that writes BOS."""
    folders = {}
    for seed, name in enumerate(("policy", "reference")):
        folders[name] = tmp_path_factory.mktemp(name)
        make_model(seed=seed).save_pretrained(folders[name])
        tokenizer = make_tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folders[name])
    return folders


def options_of(models: dict[str, Path], data: Path, **changes: Any) -> ScoreOptions:
    section = {name: changes.pop(name) for name in ("max_length", "chat_template") if name in changes}
    data_config = DataConfig(train=str(data), **section)
    return ScoreOptions(str(models["policy"]), str(models["reference"]), data_config, **changes)


def reward_options(reward: str, data: Path) -> RewardScoreOptions:
    return RewardScoreOptions(reward, DataConfig(train=str(data)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(out: Path) -> dict[str, Any]:
    return dict(json.loads(out.with_name("s.summary.json").read_text()))


def oracle(models: dict[str, Path], prompt: list[int], response: list[int]) -> float:
    """Return the log-ratio of a response, computed with transformers alone."""
    sums = []
    for name in ("policy", "reference"):
        model = AutoModelForCausalLM.from_pretrained(models[name])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        sums.append(float(logits.gather(1, torch.tensor(response)[:, None]).sum()))
    return sums[0] - sums[1]


def published_ids(row: dict[str, Any], side: str, limit: int = 2048) -> tuple[list[int], list[int]]:
    """Return prompt and response ids as RewardBench's own code tokenises them with the template above."""
    tokenizer = make_tokenizer()

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompt = f"<s>user: {row['prompt']}\n"
    answers = {name: f"{prompt}assistant: {row[name]}\n".replace(prompt, "") for name in ("chosen", "rejected")}
    whole = {}
    for name, answer in answers.items():
        joint, begin = ids(prompt + answer), len(ids(prompt))
        if joint[:begin] != ids(prompt):
            begin -= 1
        whole[name] = ([1, *joint[:begin]], [*joint[begin:], 2])
    head, response = whole[side]
    longest = max(len(r) for _, r in whole.values())
    if len(head) + longest > limit:
        head = head[-128:]
    return head, response[: limit - 128] if len(head) + longest > limit else response


def test_compatible_rewards_use_the_tokens_of_the_published_code(tmp_path: Path, models: dict[str, Path]) -> None:
    """Two BOS tokens, a scored header, and the prompt removed from responses that repeat it."""
    data, out = write_jsonl(tmp_path / "bench.jsonl", BENCH), tmp_path / "s.jsonl"
    score.run(options_of(models, data, mode="compatible", beta=1.0), out, QUIET)
    right = []
    for row, line in zip(BENCH, lines(out), strict=True):
        for side in ("chosen", "rejected"):
            prompt, response = published_ids(row, side)
            assert prompt[:2] == [1, 1]
            assert line[f"reward_{side}"] == pytest.approx(oracle(models, prompt, response), abs=1e-4)
            assert line[f"{side}_tokens"] == len(response)
        right.append(line["margin"] > 0)
        assert (line["subset"], line["id"]) == (row["subset"], str(row["id"]))
    corrected, compatible = (summary(out)[mode]["subsets"] for mode in ("corrected", "compatible"))
    assert compatible["hep-go"] == {"prompts": 2, "score": sum(right[1:3]) / 2}
    assert corrected.keys() == compatible.keys()


def test_corrected_rewards_render_the_prompt_as_a_user_message(tmp_path: Path, models: dict[str, Path]) -> None:
    """One BOS token, the header is part of the prompt, the response is unchanged."""
    data, out = write_jsonl(tmp_path / "bench.jsonl", BENCH), tmp_path / "s.jsonl"
    score.run(options_of(models, data, beta=1.0), out, QUIET)
    tokenizer = make_tokenizer()
    for row, line in zip(BENCH, lines(out), strict=True):
        head = f"<s>user: {row['prompt']}\nassistant:"
        prompt = tokenizer(head, add_special_tokens=False)["input_ids"]
        joint = tokenizer(f"{head} {row['chosen']}\n", add_special_tokens=False)["input_ids"]
        assert joint[: len(prompt)] == prompt
        assert line["reward_chosen"] == pytest.approx(oracle(models, prompt, [*joint[len(prompt) :], 2]), abs=1e-4)
    assert "compatible" not in summary(out)


def test_a_long_prompt_is_truncated_to_128_tokens_in_compatible_mode(tmp_path: Path, models: dict[str, Path]) -> None:
    row = {"prompt": "the moon " * 80, "chosen": "yes", "rejected": "no", "subset": "mine"}
    data, out = write_jsonl(tmp_path / "bench.jsonl", [row]), tmp_path / "s.jsonl"
    score.run(options_of(models, data, mode="compatible", beta=1.0, max_length=170), out, QUIET)
    prompt, response = published_ids(row, "chosen", 170)
    assert len(prompt) == 128
    assert lines(out)[0]["reward_chosen"] == pytest.approx(oracle(models, prompt, response), abs=1e-4)


def test_both_modes_are_reported_for_data_without_subsets(tmp_path: Path, models: dict[str, Path]) -> None:
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in BENCH]
    data, out = write_jsonl(tmp_path / "p.jsonl", rows), tmp_path / "s.jsonl"
    score.run(options_of(models, data, mode="compatible"), out, QUIET)
    assert summary(out)["corrected"]["prompts"] == summary(out)["compatible"]["prompts"] == 4
    assert "subset" not in lines(out)[0]


def test_a_list_is_right_if_a_chosen_response_has_the_highest_reward(tmp_path: Path, models: dict[str, Path]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def reward(prompts, responses):\n    return [float(len(r)) for r in responses]\n")
    rows = [
        {"prompt": "a", "chosen": ["xxxx"], "rejected": ["x", "xx", "xxx"], "subset": "Math", "id": "1"},
        {"prompt": "b", "chosen": ["xxx"], "rejected": ["x", "xx", "xxxx"], "subset": "Math", "id": "2"},
        {"prompt": "c", "chosen": ["xxx"], "rejected": ["yyy", "xx", "x"], "subset": "Focus", "id": "3"},
    ]
    data, out = write_jsonl(tmp_path / "v2.jsonl", rows), tmp_path / "s.jsonl"
    score.run(reward_options(f"{file}:reward", data), out, QUIET)
    figures = summary(out)
    assert figures["corrected"]["subsets"] == {
        "Focus": {"prompts": 1, "score": 0.5},
        "Math": {"prompts": 2, "score": 0.5},
    }
    assert (figures["pairs"], figures["ties"], figures["accuracy"]) == (9, 1, pytest.approx(7.5 / 9))
    assert [line["margin"] for line in lines(out)[:3]] == [3.0, 2.0, 1.0]
    assert "policy_chosen_logp" not in lines(out)[0]


def test_the_better_response_of_a_soft_label_follows_its_probability(tmp_path: Path) -> None:
    """Below 0.5 the labels are swapped; at 0.5 the row is a tie and counts as half right."""
    rows = [
        {"prompt": "a", "chosen": "x", "rejected": "yyy", "probability": 0.1, "subset": "Math"},
        {"prompt": "b", "chosen": "xx", "rejected": "y", "probability": 0.9, "subset": "Math"},
        {"prompt": "c", "chosen": "xxxxx", "rejected": "y", "probability": 0.5, "subset": "Focus"},
    ]
    out = tmp_path / "s.jsonl"
    score.run(reward_options("length", write_jsonl(tmp_path / "soft.jsonl", rows)), out, QUIET)
    figures = summary(out)
    assert (figures["pairs"], figures["ties"]) == (3, 1)
    assert figures["accuracy"] == pytest.approx(2.5 / 3)
    assert figures["margin"] == pytest.approx((2 + 1 + 0) / 3)
    assert figures["corrected"]["subsets"] == {
        "Focus": {"prompts": 1, "score": 0.5},
        "Math": {"prompts": 2, "score": 1.0},
    }


def test_a_group_in_which_every_response_loses_is_refused(tmp_path: Path) -> None:
    """A beats B and B beats A."""
    both = [{"better": 0, "worse": 1}, {"better": 1, "worse": 0}]
    rows = [{"prompt": "a", "responses": ["x", "yy"], "judgements": both, "subset": "Ties", "id": "tied:1"}]
    data = write_jsonl(tmp_path / "circle.jsonl", rows)
    with pytest.raises(DataError, match="no response counts as right"):
        score.run(reward_options("length", data), tmp_path / "s.jsonl", QUIET)


def test_compatible_mode_needs_a_chat_template(tmp_path: Path, model_folder: Path) -> None:
    data, out = write_jsonl(tmp_path / "bench.jsonl", BENCH), tmp_path / "s.jsonl"
    both = {"policy": model_folder, "reference": model_folder}
    with pytest.raises(ModelError, match="no chat template"):
        score.run(options_of(both, data, mode="compatible"), out, QUIET)
    assert not out.exists()
    score.run(options_of(both, data, mode="compatible", chat_template="dialogue"), out, QUIET)
    assert summary(out)["compatible"]["accuracy"] == 0.0  # all rewards are 0
    assert summary(out)["corrected"]["accuracy"] == 0.5
    assert "dialogue" in TEMPLATES


def test_the_table_shows_both_modes_and_their_difference(tmp_path: Path, models: dict[str, Path], capsys: Any) -> None:
    data = write_jsonl(tmp_path / "bench.jsonl", BENCH)
    arguments = ["--policy", str(models["policy"]), "--reference", str(models["reference"]), "--data", str(data)]
    assert command(["score", *arguments, "--out", str(tmp_path / "s.jsonl"), "--mode", "compatible"]) == 0
    output = capsys.readouterr().err
    assert re.search(r"subset +prompts +corrected +compatible +difference", output)
    assert re.search(r"section Reasoning \(2 of 7 subsets\) ( +-?\d\.\d{4}){3}", output)
    assert "published: the header of the assistant's turn is scored" in output
    assert "published: the prompt also occurs in a response" in output


def test_the_summary_records_the_settings(tmp_path: Path, models: dict[str, Path]) -> None:
    data, out = write_jsonl(tmp_path / "p.jsonl", PAIRS), tmp_path / "s.jsonl"
    unused = {"format": "auto", "max_length": None}
    chat = dict.fromkeys(("arguments", "moment", "thinking", "scored_turns", "system_message")) | {
        "as_chat": None,
        "allow_dropped_text": False,
    }
    score.run(options_of(models, data, max_length=100), out, QUIET)
    assert summary(out)["settings"] == {
        "policy": str(models["policy"]),
        "reference": str(models["reference"]),
        "data": str(data),
        "beta": 0.1,
        "tokens": False,
        **unused,
        "dtype": "auto",
        "chat_template": None,
        "mode": "corrected",
        "chat": chat,
        "settings": {"train": str(data), "max_length": 100},
    }
    score.run(reward_options("length", data), out, QUIET)
    section = {"train": str(data)}
    assert summary(out)["settings"] == {"reward": "length", "data": str(data), **unused, "settings": section}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "a"], "needs --policy and --reference, or --reward alone"),
        (["--policy", "a", "--reference", "b", "--reward", "length"], "or --reward alone"),
        (["--reward", "length", "--tokens"], "--tokens: the setting applies only to an implicit reward"),
        (["--policy", "a", "--reference", "b", "--mode", "compat"], "unknown mode; did you mean 'compatible'?"),
        (["--reward", "length", "--beta", "7"], "--beta: the setting applies only to an implicit reward"),
        (
            ["--policy", "a", "--reference", "b", "--mode", "compatible", "--max-length", "120"],
            "must be above 128 with --mode compatible",
        ),
        (["--reward", "implicit:a,b"], "set --policy and --reference instead"),
    ],
)
def test_options_that_cannot_be_combined_are_refused(
    tmp_path: Path, arguments: list[str], message: str, capsys: Any
) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", PAIRS)
    assert command(["score", *arguments, "--data", str(data), "--out", str(tmp_path / "s.jsonl")]) == 2
    assert message in capsys.readouterr().err


def test_the_page_of_tokens_loads_nothing_and_escapes_text(tmp_path: Path, models: dict[str, Path]) -> None:
    rows = [{"prompt": "the <b>cat</b>", "chosen": " <script>alert(1)</script>", "rejected": " no\nand no"}, *PAIRS]
    data, out = write_jsonl(tmp_path / "p.jsonl", rows), tmp_path / "s.jsonl"
    score.run(options_of(models, data, tokens=True), out, QUIET)
    page = out.with_suffix(".html").read_text()
    assert "<script>alert" not in page
    assert "default-src 'none'" in page
    assert set(re.findall(r"\w+://[^\s\"]+", page)) == {"http://www.w3.org/2000/svg"}
    data = json.loads(re.findall(r"data-figures>(.*?)</script>", page, re.S)[0])["tokens"]["pairs"]
    for row, scored in zip((one for one in data if "low margin" not in one["prompt"]), lines(out), strict=True):
        for side in ("chosen", "rejected"):
            rewards = [value for _, value in row[side]]
            assert rewards == pytest.approx(scored[f"{side}_token_rewards"], abs=1e-4)
            assert sum(rewards) == pytest.approx(scored[f"reward_{side}"], abs=1e-3)


def test_the_page_shows_the_first_pairs_and_the_lowest_margins(tmp_path: Path) -> None:
    """Of 100 pairs, the first 20 and the 20 with the lowest margins below 0."""
    first, worst = pairs_to_show([50.0 - i for i in range(100)])
    assert first == list(range(20))
    assert worst == list(range(99, 79, -1))
    assert pairs_to_show([1.0, -1.0, 0.0]) == ([0, 1, 2], [1])
    pairs = [ShadedPair(f"d:{i}.", "p", (("a", 0.0),), (("b", 1.0),)) for i in (1, 2)]
    write_token_page(tmp_path / "t.html", "t", pairs[:1], pairs[1:])
    assert re.findall(r'"prompt":"d:(\d+)\.', (tmp_path / "t.html").read_text()) == ["2", "1"]


def test_an_implicit_reward_as_the_option_reward_is_refused(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", PAIRS)
    with pytest.raises(ConfigError, match="set --policy and --reference instead"):
        score.run(reward_options("implicit:a,b", data), tmp_path / "s.jsonl", QUIET)


def test_groups_with_a_missing_reward_are_dropped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "def some(prompts, responses):\n    return [None if 'no' in r else float(len(r)) for r in responses]\n"
        "def none(prompts, responses):\n    return [None] * len(responses)\n"
    )
    data, out = str(write_jsonl(tmp_path / "b.jsonl", BENCH)), tmp_path / "s.jsonl"
    arguments = ["score", "--data", data, "--out", str(out), "--reward"]
    assert command([*arguments, f"{tmp_path / 'mine.py'}:some"]) == 0
    assert "dropped 2 (lines 1, 3): a response without a reward" in " ".join(capsys.readouterr().err.split())
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["2", "4"]
    assert command([*arguments, f"{tmp_path / 'mine.py'}:none"]) == 3


@pytest.mark.parametrize(("as_chat", "number"), [("auto", 2), (True, 2), (False, 1)])
def test_transcripts_that_differ_in_the_middle_are_scored_by_a_chat_model(
    models: dict[str, Path], tmp_path: Path, as_chat: Any, number: int
) -> None:
    head = "\n\nHuman: the cat\n\nAssistant:"
    rows = [
        {"chosen": f"{head} sat", "rejected": f"{head} no"},
        {"chosen": f"{head} sat\n\nHuman: a dog\n\nAssistant: ran", "rejected": f"{head} no"},
    ]
    data = DataConfig(train=str(write_jsonl(tmp_path / "f.jsonl", rows)), as_chat=as_chat)
    options = ScoreOptions(str(models["policy"]), str(models["reference"]), data)
    assert len(lines(score.run(options, tmp_path / "s.jsonl", QUIET))) == number
