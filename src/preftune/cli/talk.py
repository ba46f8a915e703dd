"""preftune chat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from preftune.cli import options as opt
from preftune.errors import ConfigError

Model = Annotated[
    str,
    typer.Argument(
        help="Run folder, model folder, adapter folder, checkpoint or Hub id. With --server: its name there."
    ),
]
Beside = Annotated[str | None, typer.Option(help="Second model, whose answers are shown beside those of the first.")]


def chat(
    model: Model = "",
    beside: Beside = None,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature. 0 always takes the most likely token.", min=0)
    ] = 0.7,
    top_p: Annotated[
        float,
        typer.Option(help="Sample from the most likely tokens whose probabilities add up to this.", min=1e-6, max=1),
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k most likely tokens (0 = no limit).", min=0)] = 0,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "--max-tokens", help="Maximum number of tokens per answer.", min=1)
    ] = 512,
    seed: opt.Seed = 0,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    prefs: Annotated[
        str | None, typer.Option(help="File to which /better appends preference pairs.", metavar="FILE.jsonl")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Continue your text, without the model's chat template.")
    ] = False,
    dtype: opt.Dtype = "auto",
    chat_template: Annotated[
        str | None,
        typer.Option("--chat-template", "--template", help="Chat template: a .jinja file, or `dialogue`."),
    ] = None,
    chat_template_kwargs: opt.ChatTemplateKwargs = None,
    server: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server that runs the model.")] = None,
    beside_server: Annotated[str | None, typer.Option(help="URL of the server that runs --beside.")] = None,
    api_key_env: opt.ApiKeyEnv = None,
    timeout: opt.Timeout = 120.0,
    server_settings: opt.ServerSettings = None,
    quiet: opt.Quiet = False,
) -> None:
    """Talk to a model in the terminal, or to two side by side.

    /help lists the commands, such as /better, which marks the better answer. Without a terminal, each line of stdin is
    a message, and the answers are written to stdout.
    """
    from preftune.cli.settings import chat_options

    arguments = chat_options(chat_template, chat_template_kwargs, False)["--chat-template-kwargs"]
    rendering = {"--chat-template": chat_template, "--chat-template-kwargs": arguments}
    _require_effect(plain, {"--system": system, **rendering})
    _require_server(model, beside, server, beside_server, server_settings)
    if server and (beside is None or beside_server):
        _require_local({**rendering, "--dtype": None if dtype == "auto" else dtype})
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    from preftune.chat.open import ChatOptions
    from preftune.client import Client
    from preftune.model.generate import Sampling
    from preftune.talk.run import Options, run
    from preftune.talk.speakers import OpenOptions

    models = (model, beside) if beside else (model,)
    servers = [
        Client.from_options(url, name, api_key_env, 1, timeout, server_settings if url else None)
        for url, name in zip((server, beside_server), models, strict=False)
    ]
    sampling = Sampling(1, max_new_tokens, temperature, top_p, top_k, seed)
    opened = OpenOptions(models, dtype, chat_template, ChatOptions(arguments=arguments), tuple(servers))
    run(Options(opened, sampling, system, plain, prefs), display)


def _require_effect(plain: bool, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option that --plain makes useless."""
    for name, value in options.items():
        if plain and value:
            raise ConfigError(f"{name} has no effect with --plain", where="preftune chat", fix="remove one of them")


def _require_local(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option that a server does not use."""
    for name, value in options.items():
        if value:
            why = "the server renders the messages and runs the model"
            raise ConfigError(f"{name} has no effect on a server", where="preftune chat", why=why, fix="remove it")


def _require_server(
    model: str, beside: str | None, server: str | None, beside_server: str | None, settings: str | None
) -> None:
    """Raise ConfigError if a model or the URL of its server is missing."""
    if not (model or server):
        fix = "name one: preftune chat RUN, or preftune chat NAME --server URL"
        raise ConfigError("the model is missing", where="preftune chat", fix=fix)
    if settings and not (server or beside_server):
        raise ConfigError("no server URL is set", where="--server-settings", fix="also set the server's URL")
    if beside is None and beside_server:
        raise ConfigError("there is no --beside", where="--beside-server", fix="add --beside NAME")
