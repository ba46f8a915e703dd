"""A converted model in llama.cpp writes the tokens that transformers writes.

Skipped without llama-cpp-python and llama.cpp's converter (set LLAMA_CPP to its folder).
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.export import gguf
from preftune.export.run import ExportOptions, run
from preftune.train.display import Display

PROMPTS = {"stories260k": "Once upon a time, there was a", "smollm2": "The capital of France is"}
TOKENS = 12


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_tokens_are_those_of_transformers(shared: Path, tmp_path: Path, name: str) -> None:
    llama_cpp: Any = pytest.importorskip("llama_cpp")
    if gguf.find_converter(None) is None:
        pytest.skip("llama.cpp's converter was not found")
    folder = shared / "models" / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"the folder shared has no model {name}")
    out = run(str(folder), ExportOptions("gguf", dtype="fp32"), tmp_path / "g", Display(quiet=True))
    (file,) = out.glob("*-f32.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(PROMPTS[name], return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=TOKENS, do_sample=False)[0, ids.shape[1] :].tolist()
    converted = llama_cpp.Llama(str(file), n_ctx=128, n_threads=1, verbose=False)
    actual = list(islice(converted.generate(ids[0].tolist(), top_k=1, repeat_penalty=1.0), TOKENS))
    template = converted.metadata.get("tokenizer.chat_template")
    converted.close()
    assert actual == expected
    assert template == tokenizer.chat_template
