"""Chat templates that behave like those of well-known model families, written for these tests.

They have the special tokens and the rules of their families: where tools, tool calls, results, reasoning and system
messages go, what happens to earlier turns, and what ends a turn.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tests.conftest import make_tokenizer

from preftune.chat.render import Renderer
from preftune.chat.template import ChatSettings

CALL_TAGS = (
    "{% for call in m.tool_calls %}{% set f = call.function or call %}"
    '{{ \'\n<tool_call>\n{"name": "\' + f.name + \'", "arguments": \' }}'
    "{{ f.arguments if f.arguments is string else f.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
)
RESULTS = (  # results of tools in a row share one user turn
    "{% elif m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
    "{{ '<|im_start|>user' }}{% endif %}{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
)
CHATML_GENERATE = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

LLAMA31 = (
    "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}{% if tools %}{{ 'Environment: ipython\n' }}{% endif %}"
    "{{ 'Cutting Knowledge Date: December 2023\n\n' + system + '<|eot_id|>' }}"
    "{% for m in rest %}{% set role = 'ipython' if m.role == 'tool' else m.role %}"
    "{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}"
    "{% if loop.first and tools %}{{ 'Functions:\n' }}{% for t in tools %}{{ t | tojson }}{{ '\n\n' }}{% endfor %}"
    "{% endif %}"
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    '{% set f = m.tool_calls[0].function %}{{ \'{"name": "\' + f.name + \'", "parameters": \' }}'
    "{{ f.arguments | tojson }}{{ '}' }}"
    "{% elif role == 'ipython' %}{{ m.content | tojson }}{% else %}{{ m.content | trim }}{% endif %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN25 = (
    "{% set first = messages[0].content if messages[0].role == 'system' else 'You are helpful.' %}"
    "{{ '<|im_start|>system\n' + first }}{% if tools %}{{ '\n<tools>' }}"
    "{% for t in tools %}{{ '\n' }}{{ t | tojson }}{% endfor %}{{ '\n</tools>' }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% for m in messages %}{% if m.role == 'system' and loop.first %}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant' + ('\n' + m.content if m.content else '') }}"
    + CALL_TAGS
    + "{{ '<|im_end|>\n' }}"
    + RESULTS
    + "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    + CHATML_GENERATE
)
QWEN3 = (  # reasoning is written after the last user message only; the last turn always has a <think> block
    "{% set s = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set s.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
    "{% if tools %}{{ '<|im_start|>system\n<tools>' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{{ '</tools><|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set c = m.content %}{% set thought = '' %}"
    "{% if m.reasoning_content %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in c %}{% set thought = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > s.last and (loop.last or thought) %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + c.lstrip('\n') }}{% else %}{{ c }}{% endif %}"
    + CALL_TAGS
    + "{{ '<|im_end|>\n' }}"
    + RESULTS
    + "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
MISTRAL = (  # the tools are written before the last user message; there are no system messages
    "{{ bos_token }}{% set s = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set s.last = loop.index0 %}{% elif m.role == 'system' %}"
    "{{ raise_exception('Only user, assistant and tool roles are supported') }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% if tools and loop.index0 == s.last %}"
    "{{ '[AVAILABLE_TOOLS] ' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}"
    "{{ call.function | tojson }}{{ ', ' if not loop.last else ']' }}{% endfor %}{{ eos_token }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ '[TOOL_RESULTS] {\"content\": ' + m.content + '}[/TOOL_RESULTS]' }}{% endif %}{% endfor %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA3 = (  # puts the system message before the first user message
    "{{ bos_token }}{% set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in (messages[1:] if system else messages) %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ (system if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (  # EOS follows the last turn
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
DEEPSEEK_R1 = (  # the generation prompt opens <think>; written turns have no reasoning
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "{{ '<｜User｜>' + m.content }}{% elif m.role == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
SMOLLM3 = (  # marks what the assistant writes
    "{{ '<|im_start|>system\n' + (messages[0].content if messages[0].role == 'system' else 'Be brief.') }}"
    "{% if tools %}{{ '\n' }}{{ tools | tojson }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m.content }}" + CALL_TAGS + "{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% elif m.role != 'system' %}{{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' + m.content }}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}" + CHATML_GENERATE
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
COMMAND_R = (
    "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}"
    "{{ {'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}.get(m.role, '<|SYSTEM_TOKEN|>') }}"
    "{{ m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
HERMES = QWEN25.replace("You are helpful.", "You call functions.").replace("\n<tools>", "\nFunctions: <tools>")

IM = ("<|im_start|>", "<|im_end|>")
FAMILIES: dict[str, tuple[str, tuple[str, ...], str]] = {  # template, special tokens, what ends a turn
    "llama-3.1": (LLAMA31, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "qwen-2.5": (QWEN25, IM, "<|im_end|>\n"),
    "qwen-3": (QWEN3, IM, "<|im_end|>\n"),
    "mistral": (MISTRAL, ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"), "</s>"),
    "gemma-2": (GEMMA2, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>\n"),
    "gemma-3": (GEMMA3, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>\n"),
    "phi-3": (PHI3, ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), "<|end|>\n"),
    "phi-4": (PHI4, (*IM, "<|im_sep|>"), "<|im_end|>"),
    "deepseek-r1": (DEEPSEEK_R1, ("<｜User｜>", "<｜Assistant｜>"), "</s>"),
    "smollm-3": (SMOLLM3, IM, "<|im_end|>"),
    "zephyr": (ZEPHYR, (), "</s>\n"),
    "command-r": (
        COMMAND_R,
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        "<|END_OF_TURN_TOKEN|>",
    ),
    "hermes": (HERMES, IM, "<|im_end|>\n"),
}


@cache
def family_tokenizer(name: str) -> Any:
    """Return a tokenizer with the template and the special tokens of a family."""
    template, special, _ = FAMILIES[name]
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


def family_renderer(name: str, **settings: Any) -> Renderer:
    """Return the renderer of a family."""
    tokenizer = family_tokenizer(name)
    end = FAMILIES[name][2].strip()
    return Renderer.of(tokenizer, [tokenizer.convert_tokens_to_ids(end)], ChatSettings(**settings))
