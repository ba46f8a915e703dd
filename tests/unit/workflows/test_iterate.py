"""preftune iterate: learning, files, stop rules, and resuming after an interruption at any point."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.conftest import write_jsonl

from preftune.config.sampling import IterateConfig, PeopleConfig, PromptConfig, SampleConfig, StopConfig
from preftune.config.schema import BatchConfig, DataConfig, LoraConfig, ModelConfig, OptimConfig
from preftune.errors import ConfigError, DataError, ModelError, RunError, Stopped
from preftune.lifecycle.open_policy import reward_models_fingerprint
from preftune.measures.drift import figures
from preftune.people.pairs import first_is_left
from preftune.people.verdicts import Verdicts
from preftune.rewards.reward import PromptResponse
from preftune.train.display import Display
from preftune.workflows import iterate, label
from preftune.workflows.iterate import prompts_of_round, scores
from preftune.workflows.label import LabelOptions
from preftune.workflows.stop_rounds import stop_reason

KILLS = int(os.environ.get("PREFTUNE_KILLS", "4"))  # `make kills`: 20
PROMPTS = ["the cat", "a dog", "once upon", "we can", "maybe", "the answer is"]


def share_of_a(responses: Sequence[PromptResponse]) -> list[float]:
    return [20 * r.response.count("a") / max(1, len(r.response)) for r in responses]


def config(tmp_path: Path, model: Path, **sections: Any) -> IterateConfig:
    data = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    return IterateConfig(
        model=ModelConfig(path=str(model), dtype="fp32"),
        data=PromptConfig(train=str(data)),
        reward="length",
        rounds=sections.pop("rounds", 2),
        sample=sections.pop("sample", SampleConfig(n=6, max_new_tokens=6, evaluation=8)),
        optim=OptimConfig(lr=3e-3, warmup=0),
        batch=BatchConfig(pairs=30),
        out=str(tmp_path / "run"),
        **sections,
    )


def evaluations(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


def run(config: IterateConfig) -> Path:
    return iterate.run(config, reward=share_of_a, display=Display(quiet=True))


@pytest.mark.parametrize("reference", ["fixed", "refreshed"])
def test_rounds_raise_the_reward(tmp_path: Path, model_folder: Path, reference: Any) -> None:
    sample = SampleConfig(n=16, max_new_tokens=6, evaluation=24)
    final = run(config(tmp_path, model_folder, reference=reference, rounds=3, sample=sample))
    assert (final / "model.safetensors").is_file()
    lines = evaluations(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert lines[-1]["objective/score"] > lines[0]["objective/score"] + 0.1
    assert lines[-1]["objective/kl"] > 0.05
    rounds = json.loads((tmp_path / "run" / "manifest.json").read_text())["rounds"]
    assert [r["policy"] for r in rounds][1:] == [
        str(tmp_path / "run" / f"round-0{i}" / "dpo" / "final") for i in (1, 2)
    ]
    expected = {"fixed": str(model_folder), "refreshed": rounds[2]["policy"]}
    assert rounds[2]["reference"] == expected[reference]


def test_responses_without_a_reward_are_excluded_and_counted(tmp_path: Path, model_folder: Path) -> None:
    """They are excluded from training and from the mean. It is an error if all responses have no reward."""

    def often(responses: Sequence[PromptResponse]) -> list[float | None]:
        return [None if len(r.response) % 3 == 0 else float(len(r.response)) for r in responses]

    iterate.run(config(tmp_path, model_folder, rounds=1), reward=often, display=Display(quiet=True))
    start = evaluations(tmp_path)[0]
    assert 0 < start["objective/unrewarded"] < 8 * len(PROMPTS)
    rows = [json.loads(line) for line in (tmp_path / "run" / "round-01" / "prefs.jsonl").read_text().splitlines()]
    assert all(len(text) % 3 for row in rows for text in row["responses"])
    nothing = config(tmp_path, model_folder).model_copy(update={"out": str(tmp_path / "none")})
    with pytest.raises(ModelError, match="48 of 48 responses got no reward"):
        iterate.run(nothing, reward=lambda r: [None] * len(r), display=Display(quiet=True))


def test_lr_decay_lowers_the_learning_rate_of_later_rounds(tmp_path: Path, model_folder: Path) -> None:
    run(config(tmp_path, model_folder, rounds=3, lr_decay=0.5))
    rates = [
        yaml.safe_load((tmp_path / "run" / f"round-0{i}" / "dpo" / "config.yaml").read_text())["optim"]["lr"]
        for i in (1, 2, 3)
    ]
    assert rates == [pytest.approx(3e-3), pytest.approx(1.5e-3), pytest.approx(7.5e-4)]


def test_long_prompts_are_dropped_before_anything_is_sampled(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path, model_folder, rounds=1)
    rows = [{"prompt": p} for p in [*PROMPTS, "the cat " * 200, "once upon a time there was a house"]]
    write_jsonl(Path(str(settings.data.train)), rows)
    settings = settings.model_copy(
        update={"data": settings.data.model_copy(update={"max_prompt_length": 10, "max_dropped": 0.5})}
    )
    for prompts in (None, 2000):
        changed = settings.model_copy(update={"prompts": prompts})
        iterate.run(changed, reward=share_of_a, display=Display(), dry_run=True)
        output = " ".join(capsys.readouterr().err.split())
        assert "of 6 prompts, 6 responses each" in output
    assert "dropped 2 (lines 7, 8): the prompt is longer than 10 tokens" in output
    tight = settings.model_copy(update={"sample": SampleConfig(n=2, max_new_tokens=300, evaluation=2)})
    with pytest.raises(ConfigError, match="in the model's context of 256 tokens"):
        iterate.run(tight, reward=share_of_a, display=Display(quiet=True), dry_run=True)


def artefacts(out: Path) -> dict[str, bytes]:
    """The files that do not depend on interruptions, with their content."""
    files = {}
    for path in sorted(out.rglob("*")):
        relative = str(path.relative_to(out))
        volatile = "metrics" in relative or "manifest" in relative or "report" in relative or "checkpoints" in relative
        if path.is_file() and not volatile and path.name not in ("config.yaml", "samples.jsonl.meta.json", "README.md"):
            files[relative] = path.read_bytes().replace(str(out).encode(), b"OUT")
    return files


def work(folder: str, model: str, out: str) -> None:
    """Run in another process."""
    os.environ["PREFTUNE_CACHE"] = f"{folder}/cache-{out}"
    torch.set_num_threads(1)
    (Path(folder) / out).mkdir(exist_ok=True)
    run(config(Path(folder) / out, Path(model)))


def test_a_run_killed_at_random_moments_writes_the_same_files(tmp_path: Path, model_folder: Path) -> None:
    """Runs are killed with SIGKILL and resumed until they finish; new runs are started until KILLS were sent."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["preftune.workflows.iterate", "transformers.models.llama.modeling_llama"])
    rng, kills, number, duration = random.Random(0), 0, 0, 0.0
    while kills < KILLS:
        out, ended = f"run-{number}", False
        while not ended:
            process = processes.Process(target=work, args=(str(tmp_path), str(model_folder), out))
            began = time.monotonic()
            process.start()
            if number and kills < KILLS:  # the first run is not killed
                process.join(rng.uniform(0, duration / 2))
                kills += process.is_alive()
                process.kill()
            process.join()
            ended = process.exitcode == 0
            assert ended or process.exitcode == -signal.SIGKILL
        duration, number = duration or time.monotonic() - began, number + 1
        assert artefacts(tmp_path / out / "run") == artefacts(tmp_path / "run-0" / "run")


def test_a_run_interrupted_before_any_file_resumes(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is interrupted before each file in turn; the result is that of an uninterrupted run."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run(config(tmp_path / "a", model_folder))
    stops = 0
    for module, name in (
        (iterate.samples, "run"),
        (iterate.pairs, "run"),
        (iterate.dpo, "run"),
        (iterate, "evaluated"),
    ):
        original = getattr(module, name)

        def interrupt(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            nonlocal stops
            if stops % 2 == 0:
                stops += 1
                raise KeyboardInterrupt
            stops += 1
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(config(tmp_path / "b", model_folder))
        stops = 0
    run(config(tmp_path / "b", model_folder))
    assert {key: value for key, value in artefacts(tmp_path / "a" / "run").items() if "prompts" not in key} == {
        key: value for key, value in artefacts(tmp_path / "b" / "run").items() if "prompts" not in key
    }


@pytest.mark.parametrize(
    ("stop", "reason"), [(StopConfig(kl=1e-6), "the KL from the first model is"), (StopConfig(gain=9.0), "rose by")]
)
def test_a_stop_rule_ends_the_run_and_is_reported(
    tmp_path: Path, model_folder: Path, stop: StopConfig, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    iterate.run(config(tmp_path, model_folder, stop=stop), reward=share_of_a, display=Display())
    output = " ".join(capsys.readouterr().err.split())
    assert "stopping after round 1" in output
    assert reason in output
    assert not (tmp_path / "run" / "round-02").exists()
    assert (tmp_path / "run" / "final" / "config.json").is_file()


def test_a_loss_of_diversity_stops_the_rounds(tmp_path: Path, model_folder: Path) -> None:
    before = {"objective/score": 0.0, "objective/kl": 0.0, **figures(["a b c", "d e f"], [True, True])}
    after = {"objective/score": 1.0, "objective/kl": 0.5, **figures(["a b a b", "a b a b"], [True, False])}
    assert (before["diversity"], after["diversity"]) == (1.0, pytest.approx(2 / 6))
    assert (before["repetition"], after["repetition"]) == (0.0, pytest.approx(1 / 3))
    assert after["responses/ended"] == 0.5
    settings = config(tmp_path, model_folder, stop=StopConfig(diversity=0.5, kl=1.0, gain=0.1))
    assert "33% of the word pairs are distinct" in stop_reason(settings, before, after)
    assert stop_reason(settings, before, {**after, "diversity": 0.6}) == ""
    assert "diversity" not in figures(["yes", "no"], [True, True])  # responses of one word have no word pairs
    one_word = {"objective/score": 1.0, "objective/kl": 0.5, **figures(["yes", "no"], [True, True])}
    assert stop_reason(settings, before, one_word) == ""


@pytest.mark.parametrize(
    ("stop", "published"), [(StopConfig(kl=0.35), 1), (StopConfig(gain=0.5), 1), (StopConfig(), 3)]
)
def test_the_policy_of_a_round_that_got_worse_is_not_published(
    tmp_path: Path, model_folder: Path, stop: StopConfig, published: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy of the round before is published if a limit is exceeded or the reward fell."""
    results = iter([(0.0, 0.0), (0.6, 0.3), (0.5, 0.4), (0.7, 0.5)])

    def evaluated(*_: Any) -> dict[str, float]:
        score, kl = next(results)
        return {"objective/score": score, "objective/kl": kl, "diversity": 1.0}

    monkeypatch.setattr(iterate, "evaluated", evaluated)
    final = run(config(tmp_path, model_folder, rounds=3, stop=stop))
    expected = tmp_path / "run" / f"round-0{published}" / "dpo" / "final" / "model.safetensors"
    assert (final / "model.safetensors").read_bytes() == expected.read_bytes()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["published"] == str(expected.parent)


def interrupted(settings: IterateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the first training and interrupt it."""
    with monkeypatch.context() as patch:
        patch.setattr(iterate.dpo, "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            iterate.run(settings, display=Display(quiet=True))


def test_a_reward_model_whose_weights_changed_is_refused(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", model_folder
    shutil.copytree(model_folder, one)
    weights = load_file(one / "model.safetensors")

    def scaled(factor: float) -> None:
        scaled_weights = {name: value * factor for name, value in weights.items()}
        save_file(scaled_weights, one / "model.safetensors", {"format": "pt"})

    scaled(1.5)
    settings = config(tmp_path, model_folder).model_copy(update={"reward": f"implicit:{one},{other}"})
    interrupted(settings, monkeypatch)
    scaled(2.0)
    with pytest.raises(RunError, match="the reward has changed"):
        iterate.run(settings, display=Display(quiet=True))


def test_a_changed_reward_function_resumes_with_new_evaluations(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluations by two rewards cannot be compared. The manifest records both rewards."""
    function = "def one(prompts, responses):\n    return [{} + float(len(r)) for r in responses]\n"
    (tmp_path / "mine.py").write_text(function.format(0))
    settings = config(tmp_path, model_folder, rounds=1).model_copy(update={"reward": f"{tmp_path / 'mine.py'}:one"})
    interrupted(settings, monkeypatch)
    first = json.loads((tmp_path / "run" / "start.json").read_text())["objective/score"]
    (tmp_path / "mine.py").write_text(function.format(1000))
    iterate.run(settings, display=Display())
    assert "has changed since the run began" in " ".join(capsys.readouterr().err.split())
    assert evaluations(tmp_path)[0]["objective/score"] == pytest.approx(first + 1000)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert len(set(manifest["rewards"])) == 2
    assert manifest["rounds"][0]["reward"] == manifest["rewards"][1]


def test_names_of_rewards_that_are_not_paths_have_fingerprints(tmp_path: Path) -> None:
    settings = json.dumps({"guided_regex": "x" * 5000})
    names = [f"judge:http://127.0.0.1:1,m,,{settings}", "vader", f"implicit:~nobody,{'y' * 5000}"]
    assert len({reward_models_fingerprint(name) for name in [*names, None]}) == 4


def test_evaluations_of_the_rounds_are_sent_to_the_trackers(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: dict[str, list[int]] = {}

    class Tracker:
        def __init__(self, folder: Path) -> None:
            self.folder, self.run = str(folder), dict[str, str]()

        def log(self, step: int, metrics: dict[str, float]) -> None:
            if "eval/objective/score" in metrics:
                steps.setdefault(self.folder, []).append(step)

        def close(self) -> None: ...

    def opened(names: list[str], tracked: Any) -> dict[str, Tracker]:
        return {name: Tracker(tracked.folder) for name in names}

    monkeypatch.setattr("preftune.train.run.open_trackers", opened)
    monkeypatch.setattr("preftune.lifecycle.start.require_packages", lambda _: None)
    run(config(tmp_path, model_folder, track=["tensorboard"]))
    assert steps == {str(tmp_path / "run"): [0, 1, 2]}


def test_rounds_use_different_prompts_until_all_were_used(tmp_path: Path, model_folder: Path) -> None:
    settings = config(tmp_path, model_folder, prompts=2, rounds=4)
    rounds = [prompts_of_round(settings, number, 6) for number in (1, 2, 3, 4)]
    assert sorted(i for r in rounds[:3] for i in r) == [0, 1, 2, 3, 4, 5]
    assert len(rounds[3]) == 2
    for prompts in range(1, 7):
        more = settings.model_copy(update={"prompts": prompts})
        for number in range(1, 12):  # includes rounds that cross the end of a permutation
            assert len(set(prompts_of_round(more, number, 5))) == min(prompts, 5)


def test_the_standard_error_of_an_evaluation_is_over_prompts() -> None:
    """Missing rewards are excluded; the result has the same bits as the formula."""
    rewards = np.random.default_rng(0).normal(size=(37, 5))
    rewards[rewards > 1.5] = np.nan
    rewards[3] = np.nan
    means = np.nanmean(np.delete(rewards, 3, axis=0), axis=1)
    result = scores(rewards)
    assert result["objective/score_se"] == float(means.std(ddof=1) / np.sqrt(36))
    assert result["objective/unrewarded"] == np.isnan(rewards).sum()
    assert scores(np.array([[1.0, 2.0]])) == {"objective/score": 1.5, "objective/score_se": 0.0}


def test_rounds_can_train_an_adapter(tmp_path: Path, model_folder: Path) -> None:
    final = run(config(tmp_path, model_folder, lora=LoraConfig(rank=4, alpha=8.0)))
    assert (final / "adapter_config.json").is_file()
    assert evaluations(tmp_path)[-1]["objective/kl"] != pytest.approx(0, abs=1e-4)


def test_another_config_is_refused(tmp_path: Path, model_folder: Path) -> None:
    run(config(tmp_path, model_folder, rounds=1))
    with pytest.raises(RunError, match="rounds was 1, is now 2"):
        run(config(tmp_path, model_folder, rounds=2))


def test_a_dry_run_reports_the_number_of_requests_to_a_judge(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six prompts, two rounds of 6 responses, three evaluations of 8. There is no server at that address."""
    settings = config(tmp_path, model_folder).model_copy(update={"reward": "judge:http://127.0.0.1:1,m"})
    iterate.run(settings, display=Display(), dry_run=True)
    assert f"reward: at most {6 * (2 * 6 + 3 * 8)} requests" in " ".join(capsys.readouterr().err.split())


def people_config(tmp_path: Path, model: Path, **people: Any) -> IterateConfig:
    settings = config(tmp_path, model, sample=SampleConfig(n=4, max_new_tokens=6, evaluation=2))
    return settings.model_copy(update={"reward": "people", "people": PeopleConfig(**people)})


def judge_round(folder: Path, seed: int, number: int | None = None) -> int:
    """Judge `number` pairs of a round (None: all) for the response with more letters a. Return how many it has."""
    judged = folder / "judged.jsonl"
    options = LabelOptions(DataConfig(train=str(folder / "samples.jsonl")), seed=seed, votes=1)
    pairs = label.read_pairs(options, Display(quiet=True)).pairs
    with Verdicts(label.journal_of(judged), pairs, seed, 1) as verdicts:
        for pair in pairs[:number]:
            more = str(pair.first).count("a") - str(pair.second).count("a")
            first = (more > 0) == first_is_left(pair.key, "ana", seed)
            verdicts.judge("ana", pair.key, ("a" if first else "b") if more else "tie")
    return len(pairs)


def test_people_judge_every_round_with_the_printed_command(tmp_path: Path, model_folder: Path) -> None:
    settings = people_config(tmp_path, model_folder, wait=False)
    for number in (1, 2):
        folder = tmp_path / "run" / f"round-0{number}"
        for judged in (0, 2, None):  # nothing, some and all pairs
            with pytest.raises(Stopped, match=r"label \S+samples.jsonl --out \S+judged.jsonl --votes 1") as stop:
                iterate.run(settings, display=Display(quiet=True))
            assert not (folder / "prefs.jsonl").exists()
            seed = re.search(r"--seed (\d+)", str(stop.value))
            judge_round(folder, int(seed[1]) if seed else 0, judged)
    final = iterate.run(settings, display=Display(quiet=True))
    assert (final / "model.safetensors").is_file()
    lines = evaluations(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all("objective/score" not in line and "objective/kl" in line for line in lines)
    assert lines[1]["objective/kl"] > 0
    pieces = json.loads((tmp_path / "run" / "manifest.json").read_text())["rounds"][1]["pieces"]
    assert {"prefs.jsonl", "judged.verdicts.jsonl"} <= pieces.keys()


def test_iterate_serves_the_page_and_waits(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = people_config(tmp_path, model_folder).model_copy(update={"rounds": 1})

    def post(url: str, name: str, body: Any) -> Any:
        request = urllib.request.Request(url + name, json.dumps(body).encode(), {"Origin": url.rsplit("/", 2)[0]})
        return json.load(urllib.request.urlopen(request))

    def person(url: str) -> None:
        state = json.load(urllib.request.urlopen(url + "state?annotator=ana"))
        while state["pair"]:
            body = {"annotator": "ana", "pair": state["pair"]["id"], "choice": "a"}
            state = post(url, "verdict", body)
        post(url, "finish", {})

    class Watching(Display):
        def say(self, text: str) -> None:
            if text.strip().startswith("http"):
                threading.Thread(target=person, args=(text.strip(),), daemon=True).start()

    monkeypatch.setattr(label, "Display", Watching)
    assert (iterate.run(settings, display=Display(quiet=True)) / "model.safetensors").is_file()


def test_people_without_a_preference_are_an_error(tmp_path: Path, model_folder: Path) -> None:
    settings = people_config(tmp_path, model_folder, wait=False)
    with pytest.raises(Stopped):
        iterate.run(settings, display=Display(quiet=True))
    folder = tmp_path / "run" / "round-01"
    number = judge_round(folder, 1, 0)
    options = LabelOptions(DataConfig(train=str(folder / "samples.jsonl")), seed=1, votes=1)
    pairs = label.read_pairs(options, Display(quiet=True)).pairs
    assert len(pairs) == number
    with Verdicts(label.journal_of(folder / "judged.jsonl"), pairs, 1, 1) as verdicts:
        for pair in pairs:
            verdicts.judge("ana", pair.key, "tie")
    with pytest.raises(DataError, match="prefer no response"):
        iterate.run(settings, display=Display(quiet=True))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"reward": "length", "people": PeopleConfig(votes=2)}, "people needs reward=people"),
        ({"reward": "people", "stop": StopConfig(gain=0.1)}, "stop.gain needs a reward"),
    ],
)
def test_settings_that_have_no_effect_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IterateConfig(model=ModelConfig(path="m"), data=PromptConfig(train="p.jsonl"), **sections)
