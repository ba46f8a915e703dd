"""A GGUF file, written by llama.cpp's own converter (convert_hf_to_gguf.py), which runs in a separate process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from shlex import quote

from preftune.errors import ConfigError, ModelError
from preftune.model import load

SCRIPT = "convert_hf_to_gguf.py"
ENVIRONMENT = "LLAMA_CPP"  # names the folder of llama.cpp
TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
OUT_TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
MAGIC = b"GGUF"
SOURCE = "https://github.com/ggml-org/llama.cpp"


def find_converter(path: str | None) -> Path | None:
    """Return llama.cpp's converter: `path` (the script or its folder), else from $LLAMA_CPP, the PATH or near folders.

    Raises ConfigError if `path` or $LLAMA_CPP does not lead to it.
    """
    for where, value in (("--converter", path), (ENVIRONMENT, os.environ.get(ENVIRONMENT))):
        if value:
            script = Path(value).expanduser()
            script = script / SCRIPT if script.is_dir() else script
            if not script.is_file():
                what, fix = f"there is no {SCRIPT}", "name the script, or the folder of llama.cpp"
                raise ConfigError(what, where=f"{where} {value}", fix=fix)
            return script.absolute()
    on_path = shutil.which(SCRIPT)
    candidates = [Path(on_path)] if on_path else []
    candidates += [folder / "llama.cpp" / SCRIPT for folder in (Path(), Path.home(), Path("/opt"), Path("/usr/local"))]
    return next((script.absolute() for script in candidates if script.is_file()), None)


def out_type(requested: str, folder: Path) -> str:
    """Return the type of the GGUF's weights. `auto`: that of the model folder, so that no weight is rounded again."""
    if requested not in OUT_TYPES:
        raise ConfigError(f"unknown type {requested!r}", where="--gguf-type", fix=f"use {', '.join(OUT_TYPES)}")
    if requested != "auto":
        return requested
    names = {dtype: TYPES[name] for name, dtype in {**load.DTYPES, "fp16": _fp16()}.items()}
    return names.get(load.source_dtype(load.Source(str(folder))), "f32")


def _fp16() -> object:
    import torch

    return torch.float16


def command(script: Path | str, folder: Path, file: Path, kind: str) -> list[str]:
    """Return the command that converts a model folder to a GGUF file."""
    return [sys.executable, str(script), str(folder), "--outfile", str(file), "--outtype", kind]


def instructions(folder: Path, file: Path, kind: str) -> str:
    """Return the commands to run where llama.cpp is not installed."""
    shown = " ".join(map(quote, ["python", f"llama.cpp/{SCRIPT}", *command("", folder, file, kind)[2:]]))
    return (
        f"git clone --depth 1 {SOURCE}\n"
        "pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt\n"
        f"{shown}"
    )


def convert(script: Path, folder: Path, file: Path, kind: str) -> None:
    """Run the converter. Raises ModelError with its last lines if it fails or writes no GGUF file."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    words = command(script, folder, file, kind)
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False, env=environment)
    if done.returncode != 0 or not is_gguf(file):
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        needs = script.parent / "requirements" / "requirements-convert_hf_to_gguf.txt"
        missing = lines and lines[-1].startswith("ModuleNotFoundError")
        raise ModelError(
            f"llama.cpp's converter failed with exit code {done.returncode}",
            where=str(script),
            why="\n  ".join(lines[-8:]),
            fix=f"pip install -r {needs}"
            if missing
            else "update llama.cpp, or use --to merged and convert that folder",
        )


def is_gguf(file: Path) -> bool:
    """Return whether a file begins as a GGUF file does."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(4) == MAGIC
