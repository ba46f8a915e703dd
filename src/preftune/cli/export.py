"""`preftune export`: write a trained model for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from preftune.cli.options import Quiet


def export(
    model: Annotated[
        str, typer.Argument(help="Run folder, checkpoint, model folder or adapter folder.", metavar="RUN")
    ],
    to: Annotated[str, typer.Option(help="merged, adapter, gguf, vllm, ollama or hub.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write. By default: exports/NAME-TO.")] = None,
    dtype: Annotated[
        str, typer.Option(help="Dtype of a full model: auto (as the base model is saved), fp32, bf16 or fp16.")
    ] = "auto",
    merge: Annotated[
        bool, typer.Option("--merge", help="With vllm and hub: merge an adapter into its base model.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="Base model of an adapter, if it has moved: folder or Hub id.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model. By default: the name of the run folder.")] = None,
    converter: Annotated[
        str | None, typer.Option(help="convert_hf_to_gguf.py of llama.cpp, or its folder. Also: $LLAMA_CPP.")
    ] = None,
    gguf_type: Annotated[
        str, typer.Option(help="Type of the weights in a GGUF file: auto (as in the model), f32, f16, bf16 or q8_0.")
    ] = "auto",
    repo: Annotated[str | None, typer.Option(help="With hub: the repository to upload to, as USER/NAME.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With hub: create a public repository.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With hub: upload without asking.")] = False,
    quiet: Quiet = False,
) -> dict[str, Any]:
    """Write a trained model for other programs.

    For transformers, peft, vLLM, llama.cpp, Ollama or the Hub, with a model card.
    """
    if to == "hub" and repo and not yes and sys.stdin.isatty():
        yes = typer.confirm(f"Upload {model} to {repo} ({'public' if public else 'private'})?")
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    from preftune.export.run import ExportOptions, run

    options = ExportOptions(to, dtype, merge, base, name, converter, gguf_type, repo, public, yes)
    return {"to": to, "out": run(model, options, out, display)}
