"""The commands that read rows accept the keys of the config section `data`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import PAIRS, write_jsonl

from preftune.cli.main import run
from preftune.cli.settings import chat_options, check_settings, data_section, split_arguments
from preftune.config.schema import DataConfig
from preftune.errors import ConfigError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("mine.jsonl"), [{"q": p["prompt"], "a": p["chosen"], "b": p["rejected"]} for p in PAIRS[:3]])
    write_jsonl(Path("pairs.jsonl"), PAIRS)
    Path("fmt.py").write_text(
        "from preftune import Judgement, PreferenceGroup\n"
        "def f(row):\n    return PreferenceGroup(row['q'], (row['a'], row['b']), (Judgement(0, 1),))\n"
    )


def test_rows_in_a_custom_format_are_scored_sampled_and_judged(model_folder: Path) -> None:
    model, own = str(model_folder), "data.format=fmt.py:f"
    implicit = ["--policy", model, "--reference", model]
    new = ["--max-new-tokens", "4"]
    for command in (
        ["score", *implicit, "--data", "mine.jsonl", own, "data.max_length=100", "--out", "s.jsonl"],
        ["score", "--reward", "length", "--data", "mine.jsonl", own, "--out", "r.jsonl"],
        ["sample", "--model", model, "--prompts", "mine.jsonl", own, *new, "--out", "samples.jsonl"],
        ["eval", "winrate", "--policy", model, "--judge", "length", "--data", "mine.jsonl", own, *new],
        ["eval", "frontier", *implicit, "--prompts", "mine.jsonl", own, "--reward", "length", "--yardstick", "4", *new],
    ):
        assert run([*command, "-q"]) == 0
    for file in ("s.jsonl", "r.jsonl", "samples.jsonl"):
        assert len(Path(file).read_text().splitlines()) == 3
    summary = json.loads(Path("s.summary.json").read_text())
    assert summary["settings"]["settings"] == {"train": "mine.jsonl", "format": "fmt.py:f", "max_length": 100}
    assert json.loads(Path("winrate/winrate.json").read_text())["settings"]["data_settings"]["format"] == "fmt.py:f"
    assert json.loads(Path("frontier/frontier.json").read_text())["settings"]["settings"]["format"] == "fmt.py:f"


def test_an_option_and_a_setting_give_the_same_scores(model_folder: Path) -> None:
    """--max-length and data.max_length give the same numbers; the default limit gives others."""
    model = str(model_folder)
    lengths = {}
    for name, more in {
        "option": ["--max-length", "8"],
        "setting": ["data.max_length=8"],
        "prompt": ["data.max_length=8", "data.max_prompt_length=1"],
        "long": [],
    }.items():
        arguments = ["--policy", model, "--reference", model, "--data", "pairs.jsonl", "--out", f"{name}.jsonl"]
        assert run(["score", *arguments, *more, "-q"]) == 0
        lengths[name] = [json.loads(line)["chosen_tokens"] for line in Path(f"{name}.jsonl").read_text().splitlines()]
    assert lengths["option"] == lengths["setting"]
    assert sum(lengths["option"]) < sum(lengths["long"])
    assert max(lengths["option"]) <= 7


def test_prompts_that_are_too_long_are_dropped_and_counted(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(model_folder), "--prompts", "pairs.jsonl", "--max-new-tokens", "2"]
    assert run(["sample", *arguments, "data.max_prompt_length=5", "--out", "a.jsonl"]) == 0
    assert "the prompt is longer than 5 tokens" in capsys.readouterr().err
    assert run(["sample", *arguments, "data.max_prompt_length=5", "data.max_dropped=0.1", "--out", "b.jsonl"]) == 3
    assert "rows were dropped" in capsys.readouterr().err
    assert run(["sample", *arguments, "--out", "a.jsonl"]) == 0  # other prompts are other samples
    assert len(Path("a.jsonl").read_text().splitlines()) == len(PAIRS)


@pytest.mark.parametrize(
    ("command", "setting", "message"),
    [
        ("score", "data.eval=0.1", "preftune score does not use data.eval"),
        ("score", "data.ignroe=[x]", "unknown key 'data.ignroe'; did you mean data.ignore?"),
        ("score", "ignore=[x]", "did you mean data.ignore?"),
        ("score", "model.path=x", "'model.path' is not a setting of data; valid names: data"),
        ("score", "pairs.jsonl", "this is not a setting; write data.KEY=VALUE"),
        ("score", "data.max_length=1", "data.max_length: must be at least 2"),
        ("sample", "data.pairs=adjacent", "preftune sample does not use data.pairs"),
        ("frontier", "data.overlong=drop", "preftune eval frontier does not use data.overlong"),
        ("winrate", "data.max_prompt_length=5", "preftune eval winrate does not use data.max_prompt_length"),
    ],
)
def test_settings_that_a_command_does_not_use_are_refused(
    capsys: pytest.CaptureFixture[str], command: str, setting: str, message: str
) -> None:
    models = ["--policy", "m", "--reference", "m"]
    lines = {
        "score": ["score", *models, "--data", "pairs.jsonl"],
        "sample": ["sample", "--model", "m", "--prompts", "pairs.jsonl"],
        "frontier": ["eval", "frontier", *models, "--prompts", "pairs.jsonl", "--reward", "length"],
        "winrate": ["eval", "winrate", "--policy", "m", "--judge", "length", "--data", "pairs.jsonl"],
    }
    assert run([*lines[command], setting]) == 2
    assert message in capsys.readouterr().err


def test_token_limits_are_refused_for_a_reward_function(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", "--reward", "length", "--data", "pairs.jsonl", "data.overlong=drop"]) == 2
    assert "data.overlong: the key applies only to a model that reads tokens" in capsys.readouterr().err


def test_an_existing_file_is_not_taken_for_a_setting() -> None:
    Path("a=b.jsonl").write_text("")
    Path("data.x=1").write_text("")
    assert split_arguments(
        ["a=b.jsonl", "data.max_length=3", "data.x=1", "org/name:split", "data.columns.prompt=q"]
    ) == (
        ["a=b.jsonl", "data.x=1", "org/name:split"],
        ["data.max_length=3", "data.columns.prompt=q"],
    )


def test_every_key_of_the_data_section_can_be_set() -> None:
    values = {
        "train": None, "eval": "0.5", "format": "hh", "columns": "{prompt: q}", "chat_template": "t",
        "winner_values": "{a: left}", "thinking": "keep", "where": "[x > 1]", "aspect": "safe", "ties": "half",
        "chat_template_kwargs": "{thinking: false}", "as_chat": "true", "max_length": "7", "max_prompt_length": "3",
        "overlong": "drop", "pairs": "adjacent", "margin_from_scores": "true", "ignore": "[x]", "bad_rows": "drop",
        "max_dropped": "0.5", "allow_overlap": "true", "allow_empty_prompts": "true", "allow_dropped_text": "true",
        "scored_turns": "last", "system_message": "merge", "limit": "5", "shuffle_buffer": "9", "stream": None,
        "drop": "bad.txt",
    }  # fmt: skip
    assert set(values) == set(DataConfig.model_fields)
    section = data_section("f", [f"data.{key}={v}" for key, v in values.items() if v], {}, command="preftune score")
    default = DataConfig(train="f")
    assert all(getattr(section, key) != getattr(default, key) for key in values if values[key])
    assert data_section("f", ["data.stream=true"], {}, command="preftune score").stream
    checked = check_settings(
        ["f", *(f"data.{key}={v}" for key, v in values.items() if v)], None, {}, "preftune data check"
    )
    assert checked.data == section
    assert section.columns == {"prompt": "q"}


def test_a_setting_changes_one_key_of_a_mapping(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("model: {path: m}\ndata: {train: f, columns: {prompt: q, chosen: a}}\n")
    checked = check_settings(["data.columns.prompt=question"], config, {"--model": "other"}, "preftune data check")
    assert checked.data.columns == {"prompt": "question", "chosen": "a"}
    assert checked.model is not None
    assert checked.model.path == "other"
    with pytest.raises(ConfigError, match=r"data\.train is set to both b and a"):
        check_settings(["a", "data.train=b"], config, {}, "preftune data check")


def test_every_command_refuses_to_ignore_a_column_that_no_row_has(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, misspelt = str(model_folder), "data.ignore=[promt]"
    write_jsonl(Path("prompts.jsonl"), [{"prompt": p["prompt"], "source": "here"} for p in PAIRS])
    tiny = ["model.path=" + model, "data.train=prompts.jsonl", "reward=length", "rollout.max_new_tokens=4"]
    Path("ppo.yaml").write_text("model: {path: x}\ndata: {train: y}\nreward: length\n")
    for command in (
        ["score", "--reward", "length", "--data", "pairs.jsonl", misspelt],
        ["sample", "--model", model, "--prompts", "prompts.jsonl", misspelt, "--max-new-tokens", "4"],
        ["ppo", "ppo.yaml", *tiny, misspelt, "--dry-run"],
        ["data", "check", "pairs.jsonl", misspelt],
    ):
        assert run(command) == 3, command
        assert "data.ignore lists the column 'promt', which no row has" in capsys.readouterr().err


def test_text_that_a_reward_function_does_not_see_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def side(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text, "reasoning_content": "because"}]

    prompt = [{"role": "user", "content": "why?"}]
    write_jsonl(Path("thinking.jsonl"), [{"prompt": prompt, "chosen": side("so"), "rejected": side("no")}])
    assert run(["score", "--reward", "length", "--data", "thinking.jsonl"]) == 0
    assert "'reasoning_content' of a response is not shown" in capsys.readouterr().err


def test_template_arguments_on_the_command_line_must_be_a_json_object() -> None:
    assert chat_options(None, '{"a": false}', True)["--chat-template-kwargs"] == {"a": False}
    for text in ("{a: false}", "[1]", "nothing"):
        with pytest.raises(ConfigError, match="--chat-template-kwargs: not a JSON object"):
            chat_options(None, text, False)
