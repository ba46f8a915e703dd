"""Every command end to end on small files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import PAIRS, write_jsonl
from transformers import AutoTokenizer

from preftune.chat.render import pieces_of
from preftune.cli.main import run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("pairs.jsonl"), PAIRS)


def test_help_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys; from preftune.cli.main import run; run(['--help']); "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
    for name in ("demo", "sft", "dpo", "reward", "ppo", "score", "eval", "doctor", "data"):
        assert f"\n  {name}" in done.stdout


def test_import_is_light() -> None:
    code = "import sys, preftune; print(preftune.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "preftune", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("preftune ")


def test_public_names_are_there() -> None:
    import preftune

    for name in preftune.__all__:
        assert getattr(preftune, name) is not None
    with pytest.raises(AttributeError):
        _ = preftune.nothing


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "torch 2." in said
    assert "GFLOP/s in fp32" in said
    assert "reference cache:" in said


def test_dpo_then_sft_then_score(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("dpo.yaml").write_text(
        f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl, eval: 0.25}}\nout: dpo\n"
    )
    assert run(["dpo", "dpo.yaml", "batch.pairs=3", "optim.lr=1e-3"]) == 0
    said = capsys.readouterr().err
    assert "8 rows read as 'preference', 8 kept" in said
    assert "step 0: policy = reference on 6 responses" in said
    assert "held out: loss 0.6931" in said
    lines = [json.loads(line) for line in Path("dpo/metrics.jsonl").read_text().splitlines()]
    wanted = {
        "step", "split", "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
        "logps/chosen", "logps/rejected", "grad_norm", "lr", "pairs_per_s", "tokens_per_s",
    }  # fmt: skip
    assert all(wanted <= set(line) for line in lines if line["split"] == "train")
    assert sorted(p.name for p in Path("dpo").iterdir()) == [
        "config.yaml",
        "final",
        "manifest.json",
        "metrics.jsonl",
        "report.html",
    ]

    Path("sft.yaml").write_text(f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\nout: sft\n")
    assert run(["sft", "sft.yaml", "-q"]) == 0
    assert capsys.readouterr().err == ""

    arguments = ["--policy", "dpo/final", "--reference", str(model_folder), "--data", "pairs.jsonl", "--out", "s.jsonl"]
    assert run(["score", *arguments, "--beta", "0.1"]) == 0
    rows = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {
        "index", "origin", "policy_chosen_logp", "policy_rejected_logp", "reference_chosen_logp",
        "reference_rejected_logp", "reward_chosen", "reward_rejected", "margin", "chosen_tokens", "rejected_tokens",
    }  # fmt: skip


def test_dry_run_trains_nothing(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("dpo.yaml").write_text(f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\n")
    assert run(["dpo", "dpo.yaml", "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "8 groups with 8 judgements" in said
    assert "name: sigmoid" in said
    assert "dry run: nothing was trained or written" in said
    assert not Path("runs").exists()


def test_the_same_command_again_says_that_it_is_finished(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dpo.yaml").write_text(f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\nout: run\n")
    assert run(["dpo", "dpo.yaml"]) == 0
    capsys.readouterr()
    assert run(["dpo", "dpo.yaml"]) == 0
    assert "run is finished, so nothing was done; its model is in run/final" in capsys.readouterr().err


def test_data_check(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*PAIRS, {**PAIRS[0], "rejected": PAIRS[0]["chosen"]}, {"prompt": 1}]
    write_jsonl(Path("mixed.jsonl"), rows)
    assert run(["data", "check", "mixed.jsonl", "--model", str(model_folder), "--eval", "pairs.jsonl"]) == 3
    said, refused = capsys.readouterr()
    for part in (
        "10 rows read as 'preference', 8 kept",
        "dropped 1 (line 9): identical responses",
        "dropped 1 (line 10): cannot be read: column 'prompt' must be text",
        "lengths in tokens",
        "the better response is the longer one in",
        "evaluation groups whose prompt is in the training data 8 (lines 1, 2, 3, ...)",
        "chosen (",
        "[</s>]",
    ):
        assert part in said
    assert refused.startswith("mixed.jsonl:10: column 'prompt' must be text")
    assert run(["data", "check", "mixed.jsonl", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["read"], found["kept"], found["unit"]) == ("preference", 10, 8, "characters")


def test_data_show_marks_the_scored_tokens(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "show", "pairs.jsonl", "--line", "3", "--model", str(model_folder)]) == 0
    said = capsys.readouterr().out
    assert "<s>once upon a time\n" in said
    marked = said[said.index("rejected (") :].split(": ", 1)[1]
    assert marked.replace("][", "").strip() == "[ no</s>]"


def test_data_check_says_what_is_too_long_for_the_model(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(Path("long.jsonl"), [{**PAIRS[0], "chosen": "word " * 2000}, PAIRS[1]])
    assert run(["data", "check", "long.jsonl", "--model", str(model_folder), "--max-length", "9000"]) == 2
    said, refused = capsys.readouterr()
    assert "groups longer than the 256 positions of the model 1 (line 1): set data.max_length=256" in said
    assert refused.startswith("data.max_length: the longest sequence has ")


def test_every_token_shown_is_what_it_adds_to_the_text(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = tokenizer("once  a line\nand again")["input_ids"]
    for begin in (1, 3):
        pieces = pieces_of(tokenizer, ids[:begin], ids[begin:])
        assert len(pieces) == len(ids) - begin
        assert "".join(pieces) == tokenizer.decode(ids[begin:])


def test_data_show_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(Path("evil.jsonl"), [{"prompt": "\x1b[31m[bold]x[/bold]", "chosen": "a\x07", "rejected": "b"}])
    assert run(["data", "show", "evil.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "\\x1b[31m[bold]x[/bold]" in said


@pytest.mark.parametrize("to", ["pairs", "groups"])
def test_data_convert_loses_nothing(to: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "prompt": "p",
            "responses": ["x", "y", "z"],
            "judgements": [{"better": 0, "worse": 1, "weight": 2.0}, {"better": 2, "worse": 1, "probability": 0.7}],
        },
        {
            "prompt": [{"role": "user", "content": "q"}],
            "responses": [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]],
            "judgements": [{"better": 1, "worse": 0}],
        },
    ]
    write_jsonl(Path("groups.jsonl"), rows)
    assert run(["data", "convert", "groups.jsonl", "--out", "out.jsonl", "--to", to]) == 0
    from preftune.data.groups import read_groups
    from preftune.formats.parsers import Reading

    before, after = (
        read_groups("groups.jsonl")[0],
        read_groups("out.jsonl", Reading(bad_rows="error"))[0] if to == "groups" else None,
    )
    if after is not None:
        assert [(g.prompt, g.responses, g.judgements) for g in before] == [
            (g.prompt, g.responses, g.judgements) for g in after
        ]
    else:
        found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        assert [r.get("weight") for r in found] == [2.0, None, None]
        assert [r.get("probability") for r in found] == [None, 0.7, None]
        assert found[2]["chosen"] == [{"role": "assistant", "content": "b"}]


def test_convert_demonstrations_and_labels(capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(Path("u.jsonl"), [{"prompt": "p", "completion": "c", "label": False}])
    assert run(["data", "convert", "u.jsonl", "--out", "o.jsonl"]) == 0
    assert json.loads(Path("o.jsonl").read_text()) == {"prompt": "p", "completion": "c", "label": False}


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """The fast demo: everything as expected, a page that asks the network for nothing, nothing outside its folder."""
    assert run(["demo", "--fast", "--out", "first"]) == 0
    said = capsys.readouterr().out
    assert "NOT AS EXPECTED" not in said
    assert "expected and found" in said
    assert "preftune dpo" in said.splitlines()[-1]
    page = Path("first/report.html").read_text()
    assert "closed-form optimum" in page
    assert "default-src 'none'" in page  # the browser may not ask the network for anything
    assert "http" not in page[page.index("<body>") :].replace("http://www.w3.org/", "")
    before = set(Path().iterdir())
    assert before == {Path("pairs.jsonl"), Path("first")}


def test_demo_leaves_other_folders_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("x")
    assert run(["demo", "--fast", "--out", "mine"]) == 5
    assert Path("mine/thesis.tex").read_text() == "x"


@pytest.mark.parametrize("override", ["data.train=bad.jsonl", "data.train=no.jsonl", "model.path=./no", "loss.name=x"])
def test_bad_input_is_answered_without_the_seconds_that_transformers_takes(model_folder: Path, override: str) -> None:
    """In a fresh process, imports included."""
    write_jsonl(Path("bad.jsonl"), [PAIRS[0], {"prompt": None, "chosen": "a", "rejected": "b"}])
    Path("dpo.yaml").write_text(f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\n")
    program = (
        "import sys; from preftune.cli.main import run\n"
        f"print(run(['dpo', 'dpo.yaml', '{override}']), 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    code = {"data": 3, "mode": 4, "loss": 2}[override[:4]]
    assert done.stdout == f"{code} False\n"
    assert "bad.jsonl:2: column 'prompt' is null" in done.stderr or override != "data.train=bad.jsonl"


def test_reward_then_ppo_then_the_frontier(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pipeline that DPO replaces, by its commands, and the plane on which all are compared."""
    common = f"model: {{path: {model_folder}, dtype: fp32}}\n"
    Path("reward.yaml").write_text(common + "data: {train: pairs.jsonl}\nbatch: {pairs: 4}\noptim: {lr: 1.0e-3}\n")
    Path("ppo.yaml").write_text(
        common
        + "data: {train: pairs.jsonl}\nreward: runs/reward/final\n"
        + "rollout: {prompts: 4, responses: 2, max_new_tokens: 5}\ntrain: {max_steps: 2}\n"
    )
    assert run(["reward", "reward.yaml", "--quiet"]) == 0
    assert run(["ppo", "ppo.yaml", "value.path=runs/reward/final", "--quiet"]) == 0
    assert run(["ppo", "ppo.yaml", "value.path=runs/reward/final"]) == 0
    assert "is finished" in capsys.readouterr().err
    command = ["eval", "frontier", "--reference", str(model_folder), "--policy", "runs/ppo", "--prompts", "pairs.jsonl"]
    options = ["--reward", "runs/reward/final", "--temperatures", "0.5,1", "--samples", "2", "--yardstick", "8"]
    assert run([*command, *options, "--max-new-tokens", "5", "--out", "plane"]) == 0
    said = capsys.readouterr().err
    assert "ppo, T 0.5" in said
    assert "optimum at this KL" in said
    assert json.loads(Path("plane/frontier.json").read_text())["prompts"] == 8
    assert run([*command, *options[:2], "--temperatures", "warm"]) == 2
    assert "not numbers" in capsys.readouterr().err
    assert run(["ppo", "ppo.yaml", "out=other", "reward=runs/nothing"]) == 4
    assert run(["ppo", "ppo.yaml", "out=other", "ppo.klcoef=1"]) == 2
    assert "did you mean 'kl_coef'" in capsys.readouterr().err
