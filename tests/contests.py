"""Options of a small win rate command, and a server for its judge."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from preftune.config.schema import DataConfig
from preftune.workflows.winrate import WinRateOptions
from tests.conftest import write_jsonl
from tests.servers import send_completion, send_rejection


class JudgeServer(BaseHTTPRequestHandler):
    """A chat model that prefers the candidate with more words.

    requests    bodies of all requests
    silent   the first replies that have no verdict
    grader   reply with a grade instead of a verdict
    refuses  refuse every request
    refused  the first requests that are refused
    """

    requests: list[dict[str, Any]]
    silent = 0
    grader = False
    refuses = False
    refused = 0

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.requests.append(body)
        if self.refuses or (len(self.requests) <= self.refused):
            send_rejection(self, "unsupported parameter")
            return
        data = json.loads(body["messages"][-1]["content"])
        if self.grader:
            send_completion(self, "GRADE: 5")
            return
        a, b = len(data["A"].split()), len(data["B"].split())
        word = "A" if a > b else "B" if b > a else "TIE"
        text = "hm" if len(self.requests) <= type(self).silent else f"One is longer.\nVERDICT: {word}"
        send_completion(self, text)


def contest(tmp_path: Path, model_folder: Path, **changes: Any) -> WinRateOptions:
    """Return options that compare a model with the chosen responses of three rows."""
    rows = [
        {
            "prompt": "the cat",
            "chosen": " sat on the mat and looked at the moon and the sky and the sea",
            "rejected": " no",
        },
        {"prompt": "a dog", "chosen": " ran", "rejected": " looked at the river for a long time"},
        {"prompt": "once upon", "chosen": " a time there was a house", "rejected": " no"},
    ]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    settings = {"judge": "length", "temperatures": (0.5, 1.0), "max_new_tokens": 6, **changes}
    return WinRateOptions((str(model_folder),), DataConfig(train=str(data)), **settings)
