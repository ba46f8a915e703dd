"""Arguments and options that several commands share. Nothing here takes time to import."""

from __future__ import annotations

from typing import Annotated

import typer

Config = Annotated[
    list[str] | None,
    typer.Argument(
        help="A YAML file with the config of the run (optional), and config keys to set.",
        metavar="[CONFIG.yaml] [SECTION.KEY=VALUE]",
    ),
]
Model = Annotated[str | None, typer.Option("--model", help="Model to train: a folder, a run or a Hub id (model.path).")]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", help="Data to train on: a file, a folder or a Hub id. Repeat it for several (data.train)."),
]
Lora = Annotated[bool, typer.Option("--lora", help="Train a LoRA adapter instead of all weights (lora).")]
Out = Annotated[str | None, typer.Option("--out", help="The run folder (out).")]
Settings = Annotated[
    list[str] | None, typer.Argument(help="Keys of the config section `data`.", metavar="data.KEY=VALUE")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check config, data and model, and print the plan. Train nothing.")
]
Ranks = Annotated[
    int | None, typer.Option("--ranks", help="With --dry-run: plan the run for N GPUs, from config.json alone.", min=1)
]
Memory = Annotated[str | None, typer.Option("--memory", help="With --ranks: memory of each GPU, such as 80GB.")]
Tflops = Annotated[
    float | None, typer.Option("--tflops", help="With --ranks: TFLOP/s that each GPU reaches, for the time.", min=0)
]
Bandwidth = Annotated[
    str | None, typer.Option("--bandwidth", help="With --ranks: bytes per second that a GPU receives, such as 50GB.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
MaxPrompts = Annotated[int | None, typer.Option(help="Use only the first N prompts.", min=1)]
MaxNewTokens = Annotated[int, typer.Option(help="Maximum number of tokens per response.", min=1)]
Temperatures = Annotated[str, typer.Option(help="Sampling temperatures, separated by commas.")]
Seed = Annotated[int, typer.Option(help="Random seed.", min=0)]
Dtype = Annotated[str, typer.Option(help="Compute precision: auto, fp32 or bf16.")]
DataFormat = Annotated[str | None, typer.Option("--format", help="Name of the data format (data.format).")]
ChatTemplate = Annotated[
    str | None, typer.Option(help="Chat template: a .jinja file, or `dialogue` (data.chat_template).")
]
ChatTemplateKwargs = Annotated[
    str | None, typer.Option(help="Arguments of the chat template, as a JSON object (data.chat_template_kwargs).")
]
AsChat = Annotated[
    bool | None,
    typer.Option(
        "--as-chat/--no-as-chat",
        help="Convert text to chat messages and apply the chat template (data.as_chat). By default, only transcripts "
        "of HH-RLHF are converted, and only for models with a chat template.",
        show_default=False,
    ),
]
ServerUrl = Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server.")]
ApiKeyEnv = Annotated[str | None, typer.Option(help="Name of the environment variable with the server's API key.")]
Concurrency = Annotated[int, typer.Option(help="Number of parallel requests.", min=1)]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for a completion.", min=0.1, max=86400)]
ServerSettings = Annotated[
    str | None, typer.Option(help="JSON object to merge into every request. The value null removes a setting.")
]
