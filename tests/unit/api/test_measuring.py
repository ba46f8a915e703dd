"""preftune.sample, pairs, score, winrate, frontier and check_data, in memory and with files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.conftest import PAIRS, make_model, write_jsonl

import preftune
from preftune.api.settings import DataSettings, PromptSettings, ScoreSettings
from preftune.config.schema import UNUSED_BY_SCORE, UNUSED_BY_WINRATE, DataConfig
from preftune.data.read_groups import read_groups
from preftune.formats.parsers import Reading
from preftune.model.generate import Sampling
from preftune.train.display import Display
from preftune.workflows import sample as samples_method

PROMPTS = ["the cat", "a dog", "we can"]
BRIEF: dict[str, Any] = {"max_new_tokens": 6, "quiet": True}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def length(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_equal_those_of_the_command(model_folder: Path, tmp_path: Path) -> None:
    """Without `out`, no file is left. With `out`, the file equals that of the command."""
    samples = preftune.sample(model=model_folder, prompts=PROMPTS, n=2, seed=3, **BRIEF)
    assert samples.path is None
    assert list(tmp_path.iterdir()) == []
    file = write_jsonl(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    options = samples_method.SampleOptions(str(model_folder), DataConfig(train=str(file)), Sampling(2, 6, seed=3))
    path = samples_method.run(options, tmp_path / "command.jsonl", Display(quiet=True))
    assert samples.rows["responses"] == [row["responses"] for row in lines(path)]
    assert samples.rows["origin"] == ["prompts[0]", "prompts[1]", "prompts[2]"]
    saved = preftune.sample(model=model_folder, prompts=file, n=2, seed=3, out="saved.jsonl", **BRIEF)
    assert saved.path == Path("saved.jsonl")
    assert list(saved.rows) == lines(Path("saved.jsonl"))


def test_every_kind_of_prompts_gives_the_same_samples(model_folder: Path) -> None:
    expected = preftune.sample(model=model_folder, prompts=PROMPTS, **BRIEF).rows["responses"]
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    for prompts in (tuple(PROMPTS), rows, datasets.Dataset.from_list(rows), iter(rows)):
        assert preftune.sample(model=model_folder, prompts=prompts, **BRIEF).rows["responses"] == expected
    chat = [[{"role": "user", "content": "the cat"}]]
    samples = preftune.sample(model=model_folder, prompts=chat, chat_template="dialogue", **BRIEF)
    assert samples.rows["prompt"] == chat


def test_messages_do_not_name_temporary_files(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = preftune.sample(model=model_folder, prompts=PROMPTS, n=2, max_new_tokens=6)
    preftune.pairs(samples, reward=length)
    preftune.score(policy=model_folder, reference=model_folder, data=PAIRS)
    printed = capsys.readouterr().err
    assert "done: 6 responses to 3 prompts" in printed
    assert "preftune-" not in printed


def test_a_function_selects_the_best_and_the_worst_sample(model_folder: Path) -> None:
    samples = preftune.sample(model=model_folder, prompts=PROMPTS, n=4, **BRIEF)
    made = preftune.pairs(samples, reward=length, quiet=True)
    assert made.account.read == 3
    for row in made.rows:
        (judgement,) = row["judgements"]
        better, worse = (row["responses"][judgement[side]] for side in ("better", "worse"))
        assert len(better) == max(map(len, row["responses"])) > len(worse)
    file = preftune.pairs(samples, reward="length", out="prefs.jsonl", quiet=True)
    assert list(file.rows) == list(made.rows) == lines(Path("prefs.jsonl"))
    # both results can be scored
    for data in (made, file):
        assert len(preftune.score(data=data, reward=length, quiet=True).rows) == len(made.rows)
    scored = [{"prompt": "a", "responses": ["b", "c"], "scores": [1, 2]}]
    assert preftune.pairs(scored, quiet=True).rows[0]["judgements"] == [{"better": 1, "worse": 0}]


def test_scores_of_rows_equal_those_of_their_file(model_folder: Path, pairs_file: Path) -> None:
    other = Path("other")
    make_model(seed=1).save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((model_folder / name).read_bytes())
    call: dict[str, Any] = {"policy": other, "reference": model_folder, "quiet": True}
    scores = preftune.score(data=PAIRS, tokens=True, **call)
    assert scores.path is None
    file = preftune.score(data=pairs_file, out="scores.jsonl", **call)
    assert scores.rows["margin"] == file.rows["margin"]
    assert scores.summary["accuracy"] == json.loads(Path("scores.summary.json").read_text())["accuracy"]
    assert "chosen_token_rewards" in scores.rows.columns
    by_function = preftune.score(data=PAIRS, reward=length, quiet=True)
    assert by_function.rows["margin"] == [len(row["chosen"]) - len(row["rejected"]) for row in PAIRS]


def test_a_function_can_be_the_judge(model_folder: Path) -> None:
    call: dict[str, Any] = {"policy": model_folder, "data": PAIRS, "temperatures": [1], **BRIEF}
    wins = preftune.winrate(judge=length, **call)
    by_name = preftune.winrate(judge="length", out="wins", **call)
    assert wins.rows.rows == by_name.rows.rows
    assert (wins.folder, by_name.folder) == (None, Path("wins"))
    assert wins.rows[0]["temperature"] == 1.0
    assert wins.rates[str(model_folder)]["1"].rate == wins.rows[0]["rate"]
    longer = [len(row["chosen"]) > len(row["rejected"]) for row in PAIRS]
    assert wins.agreement is not None
    assert wins.agreement["agreement"] == pytest.approx(sum(longer) / len(longer))
    assert "wins" in repr(wins)
    assert len(preftune.winrate(judge=length, dry_run=True, **call).rows) == 0


def test_verdicts_are_not_reused_for_another_function(model_folder: Path) -> None:
    call: dict[str, Any] = {"policy": model_folder, "data": PAIRS, "temperatures": [1], "out": "wins", **BRIEF}
    first = preftune.winrate(judge=length, **call)

    def brevity(prompts: list[str], responses: list[str]) -> list[float]:
        return [-float(len(response)) for response in responses]

    brevity.__module__, brevity.__qualname__ = length.__module__, length.__qualname__
    second = preftune.winrate(judge=brevity, **call)
    assert second.rows[0]["rate"] == pytest.approx(1 - first.rows[0]["rate"])


def test_the_frontier_of_the_reference_has_no_kl(model_folder: Path) -> None:
    call: dict[str, Any] = {"reference": model_folder, "policy": model_folder, "yardstick": 4, "samples": 2, **BRIEF}
    result = preftune.frontier(prompts=PROMPTS, reward=length, **call)
    assert result.folder is None
    assert result.rows["kl"] == pytest.approx([0, 0], abs=1e-5)
    assert [row["name"] for row in result.best_of_n] == ["best of 1", "best of 2", "best of 4"]
    assert len(result.optimum) > 3
    file = preftune.frontier(prompts=PROMPTS, reward="length", out="plane", **call)
    assert file.rows["reward"] == result.rows["reward"]
    assert Path("plane/frontier.html").is_file()


def test_check_data_reports_what_a_run_would_do(model_folder: Path) -> None:
    rows = [*PAIRS, {"prompt": None, "chosen": "a", "rejected": "b"}, {"prompt": "x", "chosen": "a", "rejected": "a"}]
    report = preftune.check_data(rows, model=model_folder)
    assert (report.format, report.ok, report.account.read, report.account.kept) == ("preference", False, 10, 8)
    assert report.dropped["identical responses"] == ["data[9]"]
    assert "data[8]" in str(report.refusal)
    assert report.audit.unit == "tokens"
    assert "refused" in repr(report)
    with pytest.raises(preftune.DataError, match=r"data\[8\]: column 'prompt' is null"):
        preftune.check_data(rows, strict=True)
    assert preftune.check_data(rows, bad_rows="drop").ok
    assert preftune.check_data(PAIRS).audit.unit == "characters"


def test_check_data_depends_on_the_training_method(model_folder: Path) -> None:
    demonstrations = [{"prompt": "a", "completion": " b"}, {"prompt": "c", "completion": " d"}]
    labelled = [{**row, "label": i == 0} for i, row in enumerate(demonstrations)]
    for model in (None, model_folder):
        assert preftune.check_data(demonstrations, method="sft", model=model).ok
        refusal = preftune.check_data(demonstrations, model=model).refusal
        assert "needs preference pairs, but the data contain demonstrations" in str(refusal)
        assert preftune.check_data(labelled, loss="kto", model=model).ok
        assert not preftune.check_data(labelled, method="reward", model=model).ok
    assert "max_length=256" in str(
        preftune.check_data([{**PAIRS[0], "chosen": " x" * 400}], model=model_folder, max_length=1024).refusal
    )


def test_check_data_accepts_the_settings_of_a_run() -> None:
    rows = [{**row, "margin": 1.0} for row in PAIRS]
    assert not preftune.check_data(rows).ok
    assert preftune.check_data(rows, ignore=["margin"]).ok
    assert preftune.check_data(rows, loss=preftune.losses.odpo).ok
    assert not preftune.check_data(PAIRS, eval=PAIRS[:1]).ok
    assert preftune.check_data(PAIRS, eval=PAIRS[:1]).audit.leaks == 1
    assert preftune.check_data(PAIRS, eval=PAIRS[:1], allow_overlap=True).ok
    votes = [{"q": "a", "answers": ["b", "c"]}]

    def read(row: dict[str, Any]) -> preftune.PreferenceGroup:
        return preftune.PreferenceGroup(row["q"], tuple(row["answers"]), (preftune.Judgement(0, 1),))

    assert preftune.check_data(votes, format=read).audit.judgements == 1


def test_the_account_equals_that_of_read_groups(pairs_file: Path) -> None:
    _, account = read_groups(str(pairs_file), Reading(bad_rows="drop"))
    report = preftune.check_data(pairs_file)
    assert (report.account.read, report.account.kept, report.format) == (account.read, account.kept, account.format)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown keyword": ("sample", {"temprature": 1}, r"no parameter 'temprature'; did you mean 'temperature'\?"),
    "range": ("sample", {"n": 0}, r"sample.n: must be at least 1, got 0"),
    "type": ("sample", {"seed": "x"}, r"sample.seed: must be a whole number"),
    "dtype": ("sample", {"dtype": "fp8"}, r"^dtype: must be auto, fp32 or bf16, got 'fp8'"),
    "model in memory": ("sample", {"model": make_model}, r"sample\(\): model: expected a model folder"),
    "too many tokens": ("sample", {"max_new_tokens": 5000}, r"^max_new_tokens: 5000 new tokens leave no room"),
    "server": ("sample", {"server": "http://x"}, r"fix: set out="),
    "no scores": ("pairs", {}, r"samples\[0\]: the samples have no scores\n  fix: set reward=\.\.\."),
    "selection": (
        "pairs",
        {"select": "bestworst"},
        r"^select: unknown selection 'bestworst'; did you mean 'best-worst'",
    ),
    "unused": ("pairs", {"k": 3}, r"^k: the option is not used by 'best-worst'"),
    "reward": ("pairs", {"reward": "lenght"}, r"^reward: unknown name 'lenght'; did you mean 'length'\?"),
    "signature": ("pairs", {"reward": lambda a, b: [0.0, 0.0]}, r"has the arguments a, b"),
    "several files": ("score", {"data": ["a.jsonl", "b.jsonl"]}, r"score\(\): data: expected one file, got 2"),
    "half": ("score", {"policy": "m"}, r"needs policy and reference, or reward alone"),
    "not for a reward": (
        "score",
        {"reward": "length", "tokens": True},
        r"^tokens: the setting applies only",
    ),
    "temperature": ("frontier", {"temperatures": [0]}, r"^temperatures: a temperature must be above 0"),
    "data key": ("check_data", {"max_lenght": 3}, r"unknown key 'max_lenght'; did you mean max_length\?"),
    "method": ("check_data", {"method": "dp"}, r"unknown method 'dp'; did you mean 'dpo'\?"),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_of_wrong_calls_name_keywords(what: str, model_folder: Path) -> None:
    name, change, sentence = WRONG[what]
    usual: dict[str, Any] = {
        "sample": {"model": model_folder, "prompts": PROMPTS, **BRIEF},
        "pairs": {"samples": [{"prompt": "a", "responses": ["b", "c"]}], "quiet": True},
        "score": {"data": PAIRS, "quiet": True},
        "frontier": {
            "reference": model_folder,
            "policy": model_folder,
            "prompts": PROMPTS,
            "reward": length,
            "quiet": True,
        },
        "check_data": {"data": PAIRS},
    }
    with pytest.raises(preftune.ConfigError, match=sentence) as caught:
        getattr(preftune, name)(**{**usual[name], **change})
    assert "--" not in str(caught.value)


def test_positional_and_missing_arguments_are_errors(model_folder: Path) -> None:
    with pytest.raises(preftune.ConfigError, match=r"pass them by name: model=\.\.\., prompts=\.\.\."):
        preftune.sample(str(model_folder), PROMPTS)  # type: ignore[misc]
    with pytest.raises(preftune.ConfigError, match="'pairs' needs samples"):
        preftune.pairs()  # type: ignore[call-arg]
    with pytest.raises(preftune.ConfigError, match="'sample' requires model"):
        preftune.sample(prompts=PROMPTS)  # type: ignore[call-arg]


def test_the_data_keywords_are_the_keys_of_the_section() -> None:
    keys = set(DataConfig.model_fields) - {"train"}
    for kind, unused in (
        (PromptSettings, UNUSED_BY_WINRATE),
        (ScoreSettings, UNUSED_BY_SCORE),
        (DataSettings, ["eval"]),
    ):
        assert set(kind.__annotations__) == keys - set(unused) | ({"max_prompt_length"} & set(kind.__annotations__))


def test_sample_and_score_accept_keys_of_the_data_section(model_folder: Path) -> None:
    rows = [{"q": row["prompt"], "a": row["chosen"], "b": row["rejected"], "remark": "see page 3"} for row in PAIRS]
    columns = {"prompt": "q", "chosen": "a", "rejected": "b"}
    call: dict[str, Any] = {"reference": model_folder, "policy": model_folder, "quiet": True}
    with pytest.raises(preftune.DataError, match="'remark' is not used"):
        preftune.score(data=rows, columns=columns, **call)
    scores = preftune.score(data=rows, columns=columns, ignore=["remark"], max_length=16, **call)
    assert len(scores.rows) == len(PAIRS)
    prompts = preftune.sample(model=model_folder, prompts=rows, columns=columns, ignore=["remark"], **BRIEF)
    assert prompts.rows["prompt"] == list(dict.fromkeys(row["prompt"] for row in PAIRS))
    with pytest.raises(preftune.ConfigError, match="'sample' has no parameter 'overlong'"):
        preftune.sample(model=model_folder, prompts=PROMPTS, overlong="drop", **BRIEF)
    with pytest.raises(preftune.ConfigError, match=r"no parameter 'colums'; did you mean 'columns'\?"):
        preftune.score(data=rows, colums=columns, **call)
    with pytest.raises(
        preftune.ConfigError, match=r"preftune.score\(\): the command needs policy and reference, or reward alone"
    ):
        preftune.score(data=rows, policy=model_folder)
    with pytest.raises(preftune.ConfigError, match=r"preftune.score\(\): max_length"):
        preftune.score(data=rows, max_length=1, **call)
