"""A custom reward: copy this file, change the function, and pass it as the reward of a command.

    preftune score --reward examples/reward.py:concise --data prefs.jsonl
    preftune pairs samples.jsonl --reward examples/reward.py:concise
    preftune ppo ppo.yaml reward=examples/reward.py:concise value.path=null

Use it to try an idea, as a control, or to call a model or service that preftune does not know.
"""

from __future__ import annotations

TARGET = 20  # words


# The arguments have these names. Both lists have one text per response, and so has the result.
# None means "no reward": the response is left out and counted, for example because it cannot be scored.
def concise(prompts: list[str], responses: list[str]) -> list[float | None]:
    """The share of words that are new, minus a penalty for being longer or shorter than TARGET words."""
    return [score(prompt.split(), response.split()) for prompt, response in zip(prompts, responses, strict=True)]


def score(prompt: list[str], response: list[str]) -> float | None:
    if not response:
        return None
    new = len(set(response) - set(prompt)) / len(response)  # neither copied from the prompt nor repeated
    return new - abs(len(response) - TARGET) / TARGET
