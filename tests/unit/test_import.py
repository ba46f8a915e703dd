"""The public names of `preftune`, and the libraries that `import preftune` does not import."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest

import preftune
from preftune.losses import PREFERENCE_LOSSES

HEAVY = ("torch", "transformers", "datasets", "pydantic", "numpy", "rich", "pandas")
FUNCTIONS = ["sft", "dpo", "reward", "ppo", "iterate", "sample", "pairs", "score", "winrate", "frontier", "check_data"]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_import_loads_no_heavy_library() -> None:
    code = f"import sys, preftune; dir(preftune); print([m for m in {HEAVY} if m in sys.modules])"
    assert python(code) == "[]"


def test_an_unknown_keyword_is_refused_before_torch_is_imported() -> None:
    code = (
        "import sys, preftune\ntry: preftune.dpo(model='m', dta='d')\n"
        "except preftune.ConfigError: print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert python(code) == "False False"


def gpu_defaults(**environment: str) -> list[str]:
    """Return the settings of the allocator and of cuDNN after the import."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_CUDNN_SDPA_DEPRIORITIZED")
    code = f"import os, preftune; print(*[os.environ.get(name) for name in {names}])"
    clean = {name: value for name, value in os.environ.items() if name not in names} | environment
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean
    ).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="torch has expandable segments on Linux only")
def test_the_import_sets_gpu_defaults_that_the_user_has_not_set() -> None:
    assert gpu_defaults() == ["expandable_segments:True", "None", "1"]
    assert gpu_defaults(PYTORCH_ALLOC_CONF="x") == ["x", "None", "1"]
    assert gpu_defaults(PYTORCH_CUDA_ALLOC_CONF="x") == ["None", "x", "1"]
    assert gpu_defaults(TORCH_CUDNN_SDPA_DEPRIORITIZED="0")[2] == "0"


def test_the_version_of_sources_that_are_not_installed_is_0() -> None:
    code = (
        "import importlib.metadata as m, preftune\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.version = missing\nprint(preftune.__version__)"
    )
    assert python(code) == "0"


def test_losses_is_an_attribute_after_a_fresh_import() -> None:
    assert python("import preftune; print(preftune.losses.sigmoid.__name__)") == "sigmoid"


def test_every_loss_is_an_attribute_of_losses() -> None:
    for name, loss in PREFERENCE_LOSSES.items():
        assert getattr(preftune.losses, name) is loss
        assert name in preftune.losses.__all__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_are_listed_and_documented(name: str) -> None:
    assert name in dir(preftune)
    function = getattr(preftune, name)
    assert inspect.getdoc(function)
    assert "quiet" in inspect.signature(function).parameters or name == "check_data"


def test_every_public_name_exists() -> None:
    assert set(preftune.__all__) <= set(dir(preftune))
    for name in preftune.__all__:
        assert getattr(preftune, name) is not None


def test_an_unknown_attribute_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="dop"):
        preftune.dop  # noqa: B018
