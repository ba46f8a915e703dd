"""`preftune init` lists and writes the configs that come with preftune."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from preftune.cli.init import command_of, summary_of, templates
from preftune.cli.main import run
from preftune.config.commands import CONFIGS as SCHEMAS
from preftune.config.edit import with_setting
from preftune.config.load import load

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_package_has_the_configs_of_the_repository() -> None:
    packaged = {f"{name}.yaml": path.read_bytes() for name, path in templates().items()}
    assert packaged == {path.relative_to(CONFIGS).as_posix(): path.read_bytes() for path in CONFIGS.rglob("*.yaml")}


def test_init_lists_every_config_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, path in templates().items():
        assert f"{summary_of(path.read_text())}" in next(line for line in lines if line.startswith(f"{name} "))


@pytest.mark.parametrize("kind", templates())
def test_a_config_begins_with_a_sentence_that_describes_it(kind: str) -> None:
    summary = summary_of(templates()[kind].read_text())
    assert summary.endswith(".")
    assert 20 < len(summary) < 119


@pytest.mark.parametrize("kind", templates())
def test_a_written_config_is_valid_for_the_command_that_is_printed(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", kind]) == 0
    printed = capsys.readouterr().out
    file = f"{Path(kind).name}.yaml"
    assert f"wrote {file}" in printed
    assert f"preftune {command_of(kind)} {file} model.path=... data.train=..." in printed
    assert "configs/" not in Path(file).read_text().replace("configs/paper", "")
    load(SCHEMAS[command_of(kind).split()[-1]], file)


def test_the_printed_command_names_what_is_not_set_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "ppo", "data.train=mine.jsonl"]) == 0
    assert "preftune ppo ppo.yaml model.path=... reward=...\n" in capsys.readouterr().out


def test_a_new_folder_is_created() -> None:
    assert run(["init", "sft", "new/folder"]) == 0
    assert Path("new/folder/sft.yaml").is_file()


def test_an_existing_file_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dpo.yaml").write_text("mine")
    assert run(["init", "dpo"]) == 2
    assert Path("dpo.yaml").read_text() == "mine"
    assert "dpo.yaml: the file exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dpoo"], "unknown goal 'dpoo'; did you mean 'dpo'?"),
        (["dpo", "mine.yaml"], "fix: pass the file as --out mine.yaml"),
        (["dpo", "a", "--out", "b.yaml"], "there is a folder, a, and --out b.yaml"),
        (["dpo", "--out", "b.txt"], "fix: name a file that ends in .yaml"),
        (["dpo", "a", "b"], "2 folders: a, b"),
        (["dpo", "optim.lrr=1"], "lrr"),
        (["dpo", "data.max_length=many"], "data.max_length"),
    ],
)
def test_mistakes_are_reported_and_nothing_is_written(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(Path().iterdir()) == []


SETTINGS = [
    "model.path=my/model",
    "model.path=a, {c}",
    "model.path=a b",
    "model.dtype=bf16",
    "data.train=[a.jsonl, b.jsonl]",
    "data.columns={prompt: question}",
    "data.eval=",
    "data={train: other.jsonl}",
    "loss.beta=1e-1",
    "loss=ipo",
    "loss={name: ipo, beta: 0.2}",
    "optim.lr=2e-6",
    "lora.rank=4",
    "lora={rank: 4}",
    "monitor=null",
    "train.seed=7",
    "out=runs/mine",
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", ["dpo", "dpo-lora"])
def test_a_setting_in_the_file_has_the_same_effect_as_on_the_command_line(kind: str, setting: str) -> None:
    assert run(["init", kind, setting]) == 0
    assert load(SCHEMAS["dpo"], f"{kind}.yaml") == load(SCHEMAS["dpo"], CONFIGS / f"{kind}.yaml", [setting])


def test_several_settings_are_written_to_the_file() -> None:
    settings = [setting for setting in SETTINGS if not setting.startswith("data=")]
    assert run(["init", "dpo", *settings]) == 0
    assert load(SCHEMAS["dpo"], "dpo.yaml") == load(SCHEMAS["dpo"], CONFIGS / "dpo.yaml", settings)


def test_comments_and_order_are_unchanged() -> None:
    text = "# top\na:\n  b: 1   # one\n  c: 2   # two\n\nd: {e: 3}  # three\n"
    assert with_setting(text, "a.b=5") == text.replace("1 ", "5 ")
    assert with_setting(text, "a.c=5") == text.replace("2 ", "5 ")
    assert with_setting(text, "a.f=5") == text.replace("# two\n", "# two\n  f: 5\n")
    assert with_setting(text, "d.g=5") == text.replace("3}", "3, g: 5}")
    assert with_setting(text, "h.i=5") == text + "h: {i: 5}\n"
    assert with_setting(text, "d.e.i=5") == text.replace("3}", "{i: 5}}")


def test_a_long_value_takes_no_time() -> None:
    value = "a" * 200 + ","
    assert yaml.safe_load(with_setting("a: b\n", f"a={value}")) == {"a": value}


def test_init_imports_no_torch() -> None:
    code = (
        "import sys; from preftune.cli.main import run; code = run(['init', 'dpo', 'model.path=m']); "
        "print(code, [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
