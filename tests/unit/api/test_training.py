"""preftune.sft, dpo, reward, ppo and iterate with data, models and functions in memory."""

from __future__ import annotations

import inspect
import json
import os
import threading
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pytest
import torch
from tests.conftest import PAIRS, make_model, write_jsonl

import preftune
from preftune.api.settings import DPOSettings, IterateSettings, PPOSettings, RewardSettings, SFTSettings
from preftune.config.load import dump
from preftune.methods import dpo as dpo_method
from preftune.train.display import Display
from preftune.train.run import Run

SHORT: dict[str, Any] = {
    "train": {"max_steps": 2},
    "batch": {"pairs": 4},
    "optim": {"lr": 1e-3},
    "monitor": False,
    "quiet": True,
}
PLAIN = {name: value for name, value in SHORT.items() if name != "monitor"}
PROMPTS = [{"prompt": "the cat"}, {"prompt": "a dog"}]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def half(policy: Any, reference: Any, *, beta: float = 0.1) -> torch.Tensor:
    """The DPO loss, halved."""
    h = (policy.chosen - policy.rejected) - (reference.chosen - reference.rejected)
    return -0.5 * torch.nn.functional.logsigmoid(beta * h)


def brevity(prompts: list[str], responses: list[str]) -> list[float]:
    return [-float(len(response)) for response in responses]


def weights(folder: Any) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def test_rows_in_memory_train_like_their_file(model_folder: Path, pairs_file: Path) -> None:
    """The weights are equal bit for bit for a file, a list, an iterator, a Dataset, a DataFrame and the command."""
    config = preftune.DPOConfig(
        model={"path": str(model_folder)},
        data={"train": str(pairs_file), "eval": 0.25},
        out="config",
        train={"max_steps": 2},
        batch={"pairs": 4},
        optim={"lr": 1e-3},
        monitor=None,
    )
    expected = weights(dpo_method.run(config, display=Display(quiet=True)))
    kinds = {
        "file": pairs_file,
        "files": [str(pairs_file)],
        "list": PAIRS,
        "iterator": iter(PAIRS),
        "dataset": datasets.Dataset.from_list(PAIRS),
        "frame": pandas.DataFrame(PAIRS),
        "stream": datasets.Dataset.from_list(PAIRS).to_iterable_dataset(),
        "table": pyarrow.Table.from_pylist(PAIRS),
        "section": {"train": PAIRS, "max_length": 1024},
    }
    for name, data in kinds.items():
        result = preftune.dpo(model=model_folder, data=data, eval=0.25, out=name, **SHORT)
        assert weights(result) == expected, name
    assert weights(preftune.dpo(config, data=PAIRS, out="both", quiet=True)) == expected


def test_missing_cells_of_a_data_frame_are_null(model_folder: Path) -> None:
    frame = pandas.DataFrame([*PAIRS, {"prompt": "x", "chosen": None, "rejected": "y"}])
    with pytest.raises(preftune.DataError, match=r"data\[8\]: column 'chosen' is null"):
        preftune.dpo(model=model_folder, data=frame, **SHORT)


def test_keywords_override_a_yaml_file_and_its_overrides(model_folder: Path) -> None:
    Path("run.yaml").write_text(
        f"model: {{path: {model_folder}}}\ndata: {{train: none.jsonl}}\nloss: {{name: ipo, beta: 1}}"
    )
    result = preftune.dpo("run.yaml", ["optim.lr=0.5", "out=yaml"], data=PAIRS[2:], eval=PAIRS[:2], **SHORT)
    assert result.folder == Path("yaml")
    assert (result.config.loss, result.config.optim.lr) == ({"name": "ipo", "beta": 1}, 1e-3)
    assert [row["step"] for row in result.metrics.only(split="eval")] == [0, 2]


def test_the_result_is_a_path_with_metrics(model_folder: Path) -> None:
    result = preftune.dpo(model=model_folder, data=PAIRS, out="run", lora={"rank": 2}, **SHORT)
    assert (result.folder, result.model, result.report) == (Path("run"), Path("run/final"), Path("run/report.html"))
    assert os.fspath(result) == str(result) == "run/final"
    assert (result / "adapter_config.json").is_file()
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert list(result.metrics) == lines
    assert result.last == [line for line in lines if line["split"] == "train"][-1]
    assert result.last_eval == {}
    assert result.metrics.table(split="train")["loss"][0] == pytest.approx(0.6931472)
    assert result.manifest["finished"]
    assert result.config.lora.rank == 2
    assert "run/final" in repr(result)
    assert list(result.metrics.to_pandas()["step"]) == [line["step"] for line in lines]


def test_a_run_on_rows_in_memory_resumes_unless_they_changed(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = {"model": model_folder, "out": "run", **SHORT}
    first = preftune.dpo(data=PAIRS, **call)
    again = preftune.dpo(data=datasets.Dataset.from_list(PAIRS), **{**call, "quiet": False})
    assert "run is finished" in capsys.readouterr().err
    assert again.metrics == first.metrics
    changed = [*PAIRS[:-1], {**PAIRS[-1], "rejected": " changed"}]
    with pytest.raises(preftune.RunError, match="the data files have changed"):
        preftune.dpo(data=changed, **call)
    with pytest.raises(preftune.DataError, match="these rows were passed in memory"):
        preftune.dpo("run/config.yaml", quiet=True)
    preftune.dpo("run/config.yaml", data=PAIRS, quiet=True)


def test_a_stopped_run_resumes_to_the_same_weights(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"model": model_folder, "data": PAIRS, **SHORT, "train": {"epochs": 4}}
    whole = preftune.dpo(out="whole", **call)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "stop_requested", lambda self: True)
        with pytest.raises(preftune.Stopped):
            preftune.dpo(out="parts", **call)
    assert weights(preftune.dpo(out="parts", **call)) == weights(whole)


def test_a_function_can_be_the_loss(model_folder: Path) -> None:
    """Alone, with parameters, and in a sum with a loss of preftune, which keeps its name."""
    call = {"model": model_folder, "data": PAIRS, **SHORT}
    alone = preftune.dpo(loss=half, out="alone", **call)
    assert alone.metrics.only(split="train")[0]["loss"] == pytest.approx(0.5 * 0.6931472)
    usual = preftune.dpo(loss="sigmoid", out="usual", **call)
    twice = preftune.dpo(loss=[{"name": half, "weight": 2.0, "beta": 0.1}], out="twice", **call)
    assert twice.metrics.only(split="train")["loss"] == pytest.approx(usual.metrics.only(split="train")["loss"])
    both = preftune.dpo(loss=[{"name": half}, {"name": preftune.losses.ipo, "weight": 0.5}], out="both", **call)
    assert both.config.loss[0]["name"].startswith("python:")
    assert both.config.loss[1]["name"] == "ipo"
    with pytest.raises(preftune.RunError, match=r"loss.*was.*is"):
        preftune.dpo(loss=lambda policy, reference: half(policy, reference), out="alone", **call)


def test_functions_with_the_same_source_are_distinguished(model_folder: Path) -> None:
    """Closures over different objects have the same hash, but different names within one call."""
    scales = [torch.tensor(1.0), torch.tensor(3.0)]
    made = [{"name": scaled(scale)} for scale in scales]
    result = preftune.dpo(model=model_folder, data=PAIRS, loss=made, out="run", **SHORT)
    assert result.metrics.only(split="train")[0]["loss"] == pytest.approx(4 * 0.5 * 0.6931472)


def scaled(scale: torch.Tensor) -> Any:
    def loss(policy: Any, reference: Any) -> torch.Tensor:
        return half(policy, reference) * scale

    return loss


def test_a_function_can_be_the_format(model_folder: Path) -> None:
    rows = [{"q": row["prompt"], "pair": [row["chosen"], row["rejected"]]} for row in PAIRS] + [{"q": "", "pair": []}]

    def read(row: dict[str, Any]) -> Any:
        if not row["pair"]:
            return []
        return preftune.PreferenceGroup(row["q"], tuple(row["pair"]), (preftune.Judgement(0, 1),))

    own = preftune.dpo(model=model_folder, data=rows, format=read, out="own", **SHORT)
    assert weights(own) == weights(preftune.dpo(model=model_folder, data=PAIRS, out="usual", **SHORT))


def test_a_model_in_memory_is_trained_in_place(model_folder: Path, tokenizer: Any) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = preftune.dpo(model=model, tokenizer=tokenizer, data=PAIRS, out="memory", **SHORT)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert weights(result) == weights(preftune.dpo(model=model_folder, data=PAIRS, out="folder", **SHORT))
    with pytest.raises(preftune.ConfigError, match="the tokenizer of a model in memory is missing"):
        preftune.dpo(model=make_model(), data=PAIRS, out="none", **SHORT)


def test_sft_reward_ppo_and_iterate_run(model_folder: Path) -> None:
    start = preftune.sft(model=model_folder, data=[{"prompt": "a", "completion": " b"}], out="sft", **PLAIN)
    judge = preftune.reward(model=start, data=PAIRS, out="reward", centre=0.01, **PLAIN)
    rollout = {"prompts": 2, "max_new_tokens": 4}
    tuned = preftune.ppo(
        model=start, data=PROMPTS, reward=judge, out="ppo", rollout=rollout, train={"max_steps": 1}, quiet=True
    )
    assert tuned.last["step"] == 1
    rounds = preftune.iterate(
        model=start, data=PROMPTS, reward=brevity, rounds=1, sample={"n": 2, "max_new_tokens": 4}, out="it", quiet=True
    )
    assert (rounds / "config.json").is_file()
    assert rounds.last_eval["step"] == 1
    # the same function resumes the finished run
    preftune.iterate(
        model=start, data=PROMPTS, reward=brevity, rounds=1, sample={"n": 2, "max_new_tokens": 4}, out="it", quiet=True
    )


def test_a_run_resumes_with_a_corrected_reward_function(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run reports the change, as it does for a function in a file."""

    def call(reward: Any) -> preftune.TrainResult:
        return preftune.ppo(
            model=model_folder, data=PROMPTS, reward=reward, out="run", rollout={"prompts": 2, "max_new_tokens": 4},
            train={"epochs": 2, "save_every": 1},
        )  # fmt: skip

    calls = 0

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ZeroDivisionError("broken")
        return brevity(prompts, responses)

    with pytest.raises(preftune.ConfigError, match="ZeroDivisionError"):
        call(reward)

    def reward(prompts: list[str], responses: list[str]) -> list[float]:  # type: ignore[no-redef]
        return brevity(prompts, responses)

    assert call(reward).last["step"] == 2
    assert "has changed since the run began" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(model_folder: Path, tmp_path: Path) -> None:
    result = preftune.dpo(model=model_folder, data=PAIRS, out="run", dry_run=True, **SHORT)
    assert (result.model, len(result.metrics), os.fspath(result)) == (None, 0, "run")
    assert "nothing was trained" in repr(result)
    assert list(tmp_path.iterdir()) == []


def test_training_works_in_another_thread(model_folder: Path) -> None:
    results: list[Any] = []

    def work() -> None:
        results.append(preftune.dpo(model=model_folder, data=PAIRS, loss=half, out="run", **SHORT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].last["step"] == 2


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, r"preftune.dpo\(\): model is required\npreftune.dpo\(\): data is required"),
    "keyword": ({"dta": PAIRS}, r"unknown key 'dta'; did you mean data\?"),
    "key": ({"lora": {"rnk": 1}}, r"unknown key 'lora.rnk'; did you mean lora.rank\?"),
    "key of another section": ({"lr": 1e-5}, r"unknown key 'lr'; did you mean optim.lr\?"),
    "beta": ({"beta": 0.2}, r"unknown key 'beta'; did you mean loss.beta\?"),
    "type": ({"optim": {"lr": "high"}}, r"optim.lr: must be a number.*got 'high'"),
    "range": ({"train": {"epochs": 0}}, r"train.epochs: must be at least 1, got 0"),
    "loss": ({"loss": "ipoo"}, r"loss.name: unknown name 'ipoo'; did you mean 'ipo'\?"),
    "parameter of a function": ({"loss": {"name": half, "gamma": 1}}, r"loss.gamma: .* has no parameter 'gamma'"),
    "input of a function": ({"loss": lambda polcy: polcy}, r"has the input 'polcy', which does not exist"),
    "path": ({"model": 5}, r"model.path: must be text.*got 5"),
    "eval": ({"eval": 2.0}, r"data.eval: must be a file, or a share of the training data between 0 and 1, got 2.0"),
    "eval twice": ({"data": {"train": PAIRS, "eval": 0.5}, "eval": 0.1}, r"'eval' is set twice"),
    "config": ({"config": make_model}, r"the first argument must be a config, not function"),
    "config of another method": (
        {"config": preftune.SFTConfig(model={"path": "m"}, data={"train": "d"})},
        r"the config is a SFTConfig, not a DPOConfig",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_calls_get_the_messages_of_the_commands(what: str, model_folder: Path) -> None:
    change, message = WRONG[what]
    call = {} if what == "nothing" else {"model": model_folder, "data": PAIRS, **change}
    with pytest.raises(preftune.ConfigError, match=message) as caught:
        preftune.dpo(**call)
    assert isinstance(caught.value, ValueError)
    assert "pydantic" not in str(caught.value)


def test_wrong_data_are_refused(model_folder: Path) -> None:
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(PAIRS), test=datasets.Dataset.from_list(PAIRS))
    for data, sentence in (
        (splits, r"got a DatasetDict with the splits train, test[^$]*dataset\['train'\]"),
        ({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}, r"got dict[^$]*Dataset.from_dict"),
        ([], "data: the data are empty"),
        (5, "expected a list of dicts, a datasets.Dataset or a file, got int"),
        ([5], r"data\[0\]: a row must be an object with named fields, not int"),
        ("none.jsonl", "none.jsonl: no such file"),
    ):
        with pytest.raises(preftune.DataError, match=sentence):
            preftune.dpo(model=model_folder, data=data, **SHORT)
    with pytest.raises(preftune.ConfigError, match=r"unknown key 'data.trian'; did you mean data.train\?"):
        preftune.dpo(model=model_folder, data={"trian": PAIRS}, **SHORT)


def test_models_in_memory_are_refused_where_a_folder_is_needed(model_folder: Path) -> None:
    with pytest.raises(
        preftune.ConfigError, match=r"iterate\(\): model: expected a folder, got a model[^$]*save_pretrained"
    ):
        preftune.iterate(model=make_model(), data=PROMPTS, reward=brevity)
    with pytest.raises(preftune.ConfigError, match=r"ppo\(\): reward: expected a folder, got a model in memory"):
        preftune.ppo(model=model_folder, data=PROMPTS, reward=make_model())


def test_config_classes_raise_the_same_messages() -> None:
    with pytest.raises(
        preftune.ConfigError, match=r"DPOConfig: unknown key 'optim.lrr'; did you mean optim.lr"
    ) as caught:
        preftune.DPOConfig(model={"path": "m"}, data={"train": "d"}, optim={"lrr": 1})
    assert caught.value.exit_code == 2


def test_the_typed_keywords_are_the_keys_of_the_configs() -> None:
    named = {"model", "data", "out", "loss", "reward"}
    for schema, keywords in (
        (preftune.SFTConfig, SFTSettings),
        (preftune.DPOConfig, DPOSettings),
        (preftune.RewardConfig, RewardSettings),
        (preftune.PPOConfig, PPOSettings),
        (preftune.IterateConfig, IterateSettings),
    ):
        assert set(keywords.__annotations__) == set(schema.model_fields) - named, schema


def test_a_saved_config_names_its_functions(model_folder: Path) -> None:
    result = preftune.dpo(model=model_folder, data=PAIRS, loss=half, out="run", **SHORT)
    assert "python:" in dump(result.config)
    with pytest.raises(preftune.ConfigError, match="was passed as a Python function"):
        preftune.dpo("run/config.yaml", data=write_jsonl(Path("p.jsonl"), PAIRS), out="again", quiet=True)


def test_help_shows_the_typed_keywords() -> None:
    for function in (preftune.sft, preftune.dpo, preftune.reward, preftune.ppo, preftune.iterate):
        parameters = inspect.signature(function).parameters
        assert {"config", "overrides", "model", "data", "eval", "out", "dry_run", "quiet"} <= set(parameters)
        assert "Unpack" in str(parameters["settings"].annotation)
