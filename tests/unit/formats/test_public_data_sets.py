"""Rows with the columns of public data sets are parsed correctly, or refused with the name of the column.

The texts are made up and show where they belong: PROMPT, EARLIER and SYSTEM in the prompt, GOOD in the better response,
BAD in the worse one. NOISE must not appear in a group.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.unit.formats.examples import chat

from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.types import content

P, G, B = "PROMPT of the row?", "GOOD answer", "BAD answer"
ASK, GOOD, BAD = chat(("user", P)), chat(("assistant", G)), chat(("assistant", B))
TRANSCRIPT = f"\n\nHuman: EARLIER\n\nAssistant: x\n\nHuman: {P}\n\nAssistant:"
PAIR = {"prompt": P, "chosen": G, "rejected": B}
WHOLE = {"chosen": ASK + GOOD, "rejected": ASK + BAD}
EARLIER = chat(("user", "EARLIER"), ("assistant", "NOTED"))
SHAREGPT = [{"from": "human", "value": "EARLIER"}, {"from": "gpt", "value": "x"}, {"from": "human", "value": P}]


def item(text: str, **more: Any) -> dict[str, Any]:
    return {"text": text, **more}


def parts(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text, "image": None}]}


# name, format, row
PAIRS: list[tuple[str, str, dict[str, Any]]] = [
    ("TRL explicit", "preference", PAIR),
    ("TRL implicit", "preference-implicit", {"chosen": f"{P} {G}", "rejected": f"{P} {B}"}),
    ("TRL conversational", "chat", {"prompt": ASK, "chosen": GOOD, "rejected": BAD, "tools": None}),
    ("TRL conversational implicit", "chat-implicit", {**WHOLE, "score_chosen": 8.5, "score_rejected": 3.0}),
    (
        "Anthropic/hh-rlhf",
        "hh",
        {
            k: f"\n\nHuman: EARLIER\n\nAssistant: x\n\nHuman: {P}\n\nAssistant: {t}"
            for k, t in (("chosen", G), ("rejected", B))
        },
    ),
    (
        "HuggingFaceH4/ultrafeedback_binarized",
        "ultrafeedback",
        {"prompt": P, "prompt_id": "f0", **WHOLE, "messages": ASK + GOOD, "score_chosen": 8.0, "score_rejected": 5.5},
    ),
    (
        "openbmb/UltraFeedback",
        "ranked",
        {
            "source": "NOISE",
            "instruction": P,
            "models": ["a", "b"],
            "completions": [
                {"model": "a", "response": B, "critique": "NOISE", "principle": "NOISE", "overall_score": 3.0},
                {"model": "b", "response": G, "critique": "NOISE", "principle": "NOISE", "overall_score": 8.0},
            ],
            "correct_answers": ["NOISE"],
            "incorrect_answers": ["NOISE"],
        },
    ),
    (
        "argilla/ultrafeedback-binarized-preferences-cleaned",
        "ultrafeedback",
        {"source": "s", "prompt": P, **WHOLE, "chosen-rating": 4.5, "chosen-model": "m", "rejected-rating": 2.0}
        | {"rejected-model": "n"},
    ),
    (
        "argilla/ultrafeedback-binarized-preferences",
        "preference",
        {"source": "s", "instruction": P, "chosen_response": G, "rejected_response": B, "chosen_avg_rating": 4.5}
        | {"rejected_avg_rating": 2.0, "chosen_model": "m"},
    ),
    (
        "argilla/distilabel-intel-orca-dpo-pairs",
        "preference",
        {"system": "SYSTEM", "input": P, "chosen": G, "rejected": B, "generations": [G, "NOISE"], "order": ["a", "b"]}
        | {"labelling_model": "g", "labelling_prompt": chat(("user", "NOISE")), "raw_labelling_response": "NOISE"}
        | {"rating": [9.0, 3.0], "rationale": "NOISE", "status": "unchanged", "original_chosen": "NOISE"}
        | {"original_rejected": B, "chosen_score": 9.0, "in_gsm8k_train": False},
    ),
    ("Intel/orca_dpo_pairs", "preference", {"system": "SYSTEM", "question": P, "chosen": G, "rejected": B}),
    (
        "stanfordnlp/SHP",
        "votes",
        {"post_id": "p", "domain": "d", "upvote_ratio": 0.9, "history": P, "c_root_id_A": "a", "c_root_id_B": "b"}
        | {"human_ref_A": B, "human_ref_B": G, "labels": 0, "score_A": 1, "score_B": 9, "score_ratio": 9.0}
        | {"seconds_difference": 12.0},
    ),
    (
        "HuggingFaceH4/stack-exchange-preferences",
        "ranked",
        {
            "qid": 1,
            "question": P,
            "answers": [
                item(B, answer_id=1, author="NOISE", pm_score=1, selected=False),
                item(G, answer_id=2, author="NOISE", pm_score=4, selected=True),
            ],
            "date": "2020/01/01",
            "metadata": ["https://NOISE"],
        },
    ),
    (
        "lvwerra/stack-exchange-paired",
        "preference",
        {"qid": 1, "question": P, "date": "d", "metadata": ["NOISE"], "response_j": G, "response_k": B},
    ),
    (
        "berkeley-nest/Nectar",
        "ranked",
        {
            "prompt": f"\n\nHuman: {P}\n\nAssistant: ",
            "answers": [{"answer": B, "model": "a", "rank": 2.0}, {"answer": G, "model": "b", "rank": 1.0}],
            "turns": 1,
            "num_responses": 2,
            "source": ["NOISE"],
            "good_natured": True,
        },
    ),
    (
        "NeMo-RL",
        "ranked",
        {
            "context": ASK,
            "completions": [{"rank": 1, "completion": BAD}, {"rank": 0, "completion": GOOD}],
            "task_name": "NOISE",
        },
    ),
    (
        "nvidia/HelpSteer2",
        "votes",
        {"split": "train", "prompt": P, "response_1": B, "response_2": G, "preference_strength": 2}
        | {"preference_statement": "NOISE", "preference_elaboration": "NOISE"}
        | {"three_most_similar_preferences": [{"statement": "NOISE"}], "all_preferences_unprocessed": [{"s": "NOISE"}]},
    ),
    (
        "nvidia/HelpSteer3",
        "votes",
        {"domain": "d", "language": "l", "context": ASK, "response1": G, "response2": B, "overall_preference": -1}
        | {"individual_preference": [{"score": -1, "reasoning": "NOISE"}]},
    ),
    (
        "PKU-Alignment/PKU-SafeRLHF",
        "votes",
        {"prompt": P, "response_0": B, "response_1": G, "prompt_source": "s", "response_0_source": "s"}
        | {"is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 1}
        | {"response_0_harm_category": {"violence": False}, "response_0_sha256": "f", "response_0_severity_level": 0},
    ),
    ("allenai/tulu-3-preference-mixture", "ultrafeedback", {"id": "i", "source": "s", "prompt": P, **WHOLE}),
    (
        "LLaMA-Factory alpaca",
        "preference",
        {"system": "SYSTEM", "history": [["EARLIER", "x"]], "instruction": "PROMPT", "input": P, "chosen": G}
        | {"rejected": B},
    ),
    (
        "LLaMA-Factory sharegpt",
        "sharegpt",
        {"conversations": SHAREGPT, "system": "SYSTEM", "chosen": {"from": "gpt", "value": G}}
        | {"rejected": {"from": "gpt", "value": B}, "tools": "[]"},
    ),
    ("axolotl chat_template", "chat", {"messages": EARLIER + ASK, "chosen": GOOD[0], "rejected": BAD[0]}),
    ("ms-swift", "last-turn", {"messages": EARLIER + ASK + GOOD, "rejected_response": B}),
    ("ms-swift messages", "last-turn", {"messages": ASK + GOOD, "rejected_messages": ASK + BAD}),
    (
        "OpenAI",
        "openai",
        {
            "input": {"messages": ASK, "tools": [], "parallel_tool_calls": True},
            "preferred_output": GOOD,
            "non_preferred_output": BAD,
        },
    ),
    (
        "openai/summarize_from_feedback",
        "summaries",
        {
            "info": {"id": "t", "post": P, "title": "t", "subreddit": "s", "site": None, "article": None},
            "split": "train",
            "summaries": [item(B, policy="NOISE", note="NOISE"), item(G, policy="NOISE", note="NOISE")],
            "choice": 1,
            "worker": "NOISE",
            "batch": "NOISE",
            "extra": {"confidence": 7},
        },
    ),
    ("trl-lib/tldr-preference", "preference", {"prompt": f"POST: {P}\n\nTL;DR:", "chosen": G, "rejected": B}),
    (
        "lmsys/chatbot_arena_conversations",
        "votes",
        {"question_id": "q", "model_a": "NOISE", "model_b": "NOISE", "winner": "model_b", "judge": "NOISE"}
        | {"conversation_a": ASK + BAD, "conversation_b": ASK + GOOD, "turn": 1, "anony": True, "language": "l"}
        | {"tstamp": 1.0, "openai_moderation": {"flagged": False}, "toxic_chat_tag": {"roberta": {"flagged": False}}},
    ),
    (
        "allenai/reward-bench",
        "preference",
        {**PAIR, "chosen_model": "NOISE", "rejected_model": "NOISE", "subset": "NOISE", "id": 3},
    ),
    (
        "allenai/reward-bench-2",
        "lists",
        {"id": "i", "prompt": P, "chosen": [G], "rejected": [B, "BAD too"], "num_correct": 1, "num_incorrect": 2}
        | {"total_completions": 3, "models": ["NOISE"], "subset": "NOISE", "additional_metadata": {"a": "NOISE"}},
    ),
    (
        "argilla/distilabel-capybara-dpo",
        "ultrafeedback",
        {"source": "s", "conversation": [{"input": P, "output": None}], "original_response": G, "prompt": P, **WHOLE}
        | {"generation_prompt": ["NOISE"], "raw_generation_responses": ["NOISE"], "generation_model": ["NOISE"]}
        | {"rating_chosen": 5, "rating_rejected": 2, "chosen_model": "m", "rejected_model": "n"},
    ),
    ("mlabonne/orpo-dpo-mix-40k", "ultrafeedback", {"source": "s", "prompt": P, **WHOLE, "question": P}),
    (
        "snorkelai",
        "ultrafeedback",
        {"prompt_id": "p", "prompt": P, "all_generated_responses": [G, B, "NOISE"], "all_rm_scores": [0.9, 0.1, 0.2]}
        | WHOLE,
    ),
    (
        "NeMo-Aligner",
        "preference",
        {"prompt": P, "chosen_response": G, "rejected_response": B, "chosen_reward": 5, "rejected_reward": 1},
    ),
    (
        "openai/webgpt_comparisons",
        "votes",
        {"question": {"dataset": "NOISE", "id": "NOISE", "full_text": P}, "answer_0": B, "answer_1": G}
        | {f"quotes_{i}": {"title": ["NOISE"], "extract": ["NOISE text"]} for i in (0, 1)}
        | {f"tokens_{i}": {"prefix": [1], "completion": [2]} for i in (0, 1)}
        | {"score_0": -0.5, "score_1": 0.5},
    ),
    (
        "openai/summarize_from_feedback, articles",
        "summaries",
        {"info": {"id": "t", "article": P, "title": None, "post": None}, "choice": 0, "worker": "NOISE"}
        | {"summaries": [item(G, policy="NOISE"), item(B, policy="NOISE")], "batch": "NOISE", "split": "valid1"}
        | {"extra": {"confidence": 7}},
    ),
    (
        "openbmb/UltraInteract_pair",
        "chat",
        {"task": "Coding", "dataset": "NOISE", "trajectory": SHAREGPT, "chosen": G, "rejected": B}
        | {"id": "i", "parent_id": "j"},
    ),
    (
        "argilla, one annotator",
        "votes",
        {"prompt": P, "response-1": B, "response-2": G, "external_id": "e", "metadata": "{}"}
        | {"preference": [{"user_id": "u", "value": "response-2", "status": "submitted"}]},
    ),
    (
        "argilla, ratings",
        "votes",
        {"prompt": P, "response-1": B, "response-2": G}
        | {"preference": {"user_id": ["u", "v", "w"], "value": [2, 1, 2], "status": ["submitted"] * 3}},
    ),
    (
        "argilla, ranking",
        "votes",
        {"prompt": P, "response-1": G, "response-2": B}
        | {"preference": [{"value": {"rank": [1, 2], "value": ["response-1", "response-2"]}, "status": "submitted"}]},
    ),
    (
        "lmarena-ai/arena-human-preference-55k",
        "votes",
        {"id": 1, "model_a": "NOISE", "model_b": "NOISE", "prompt": json.dumps([P]), "response_a": json.dumps([B])}
        | {"response_b": json.dumps([G]), "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
    ),
    (
        "lmarena-ai/arena-human-preference-140k",
        "votes",
        {"id": "i", "model_a": "NOISE", "model_b": "NOISE", "winner": "model_b", "evaluation_order": 1}
        | {f"conversation_{s}": [parts("user", P), parts("assistant", t)] for s, t in (("a", B), ("b", G))}
        | {"full_conversation": [{"user": parts("user", P), "model_side_a": parts("assistant", "NOISE")}]}
        | {"conv_metadata": {"turns": 1}, "category_tag": {"creative": True}, "language": "en", "is_code": False},
    ),
    ("axolotl zephyr.nectar", "ranked", {"prompt": P, "answers": [{"answer": B, "rank": 2}, {"answer": G, "rank": 1}]}),
    ("axolotl llama3.icr", "preference", {"system": "SYSTEM", "input": P, "chosen": G, "rejected": B}),
    ("ms-swift text", "preference", {"query": P, "response": G, "rejected_response": B, "history": [["EARLIER", "x"]]}),
    ("OpenRLHF mixture", "chat-implicit", {**WHOLE, "dataset": "NOISE", "margin": [1.0]}),
    ("jondurbin/truthy-dpo", "preference", {"id": 1, "source": "s", "system": "SYSTEM", **PAIR}),
]


@pytest.mark.parametrize(("name", "form", "row"), PAIRS, ids=[name for name, _, _ in PAIRS])
def test_pairs_of_public_data_sets_are_parsed(tmp_path: Path, name: str, form: str, row: dict[str, Any]) -> None:
    groups, account = read_groups(str(write_jsonl(tmp_path / "rows.jsonl", [row])))
    assert (account.format, account.kept, account.noted) == (form, 1, {})
    [group] = groups
    prompt = content(group.prompt)
    assert all(word in prompt for word in ("PROMPT", "EARLIER", "SYSTEM") if word in str(row))
    assert not any(word in prompt for word in ("GOOD", "BAD", "NOISE"))
    assert group.judgements
    for judgement in group.judgements:
        better, worse = content(group.responses[judgement.better]), content(group.responses[judgement.worse])
        assert better.strip() == G
        assert worse.strip().startswith("BAD")
    assert set(account.columns) == set(row)


ONE_RESPONSE: list[tuple[str, str, dict[str, Any], tuple[int, ...]]] = [
    ("trl-lib/kto-mix-14k", "unpaired", {"prompt": ASK, "completion": GOOD, "label": True}, (1,)),
    (
        "argilla/kto-mix-15k",
        "unpaired",
        {"prompt": P, "completion": G, "label": 0.0, "rating": 2.0},
        (-1,),
    ),
    ("LLaMA-Factory KTO", "unpaired-messages", {"messages": ASK + GOOD, "kto_tag": False}, (-1,)),
    ("LLaMA-Factory KTO alpaca", "unpaired", {"instruction": P, "input": "", "output": G, "kto_tag": True}, (1,)),
    (
        "PKU-Alignment/BeaverTails",
        "unpaired",
        {"prompt": P, "response": G, "label": False, "category": {"x": True}},
        (-1,),
    ),
    ("words as labels", "unpaired", {"prompt": P, "completion": G, "label": "undesirable"}, (-1,)),
    ("LDJnr/Capybara", "sft-conversations", {"source": "s", "conversation": [{"input": P, "output": G}]}, ()),
    ("Firefly", "sft-conversations", {"conversation": [{"human": P, "assistant": G}], "category": "c"}, ()),
    ("GAIR/lima", "sft-conversations", {"conversations": [P, G], "source": "NOISE"}, ()),
    (
        "prometheus-eval/Feedback-Collection",
        "sft-completion",
        {
            "orig_instruction": "NOISE",
            "orig_response": "NOISE",
            "orig_reference_answer": "NOISE",
            "orig_criteria": "NOISE",
        }
        | {f"orig_score{i}_description": "NOISE" for i in range(1, 6)}
        | {"orig_feedback": "NOISE", "orig_score": 3, "instruction": P, "output": G, "input": ""},
        (),
    ),
    ("messages", "sft-messages", {"messages": ASK + GOOD, "prompt": P, "prompt_id": "p", "category": "c"}, ()),
    ("prompt and completion", "sft-completion", {"prompt": P, "completion": G}, ()),
    (
        "sharegpt",
        "sft-conversations",
        {"id": 1, "conversations": [{"from": "human", "value": P}, {"from": "gpt", "value": G}]},
        (),
    ),
    ("alpaca", "sft-completion", {"instruction": P, "input": "", "output": G, "text": f"### {P}\n\n### {G}"}, ()),
    ("alpaca without text", "sft-completion", {"instruction": "PROMPT", "input": P, "output": G}, ()),
    ("databricks/dolly-15k", "sft-completion", {"instruction": P, "context": "", "response": G, "category": "c"}, ()),
]


@pytest.mark.parametrize(("name", "form", "row", "labels"), ONE_RESPONSE, ids=[row[0] for row in ONE_RESPONSE])
def test_single_responses_of_public_data_sets_are_parsed(
    tmp_path: Path, name: str, form: str, row: dict[str, Any], labels: tuple[int, ...]
) -> None:
    groups, account = read_groups(str(write_jsonl(tmp_path / "rows.jsonl", [row])))
    assert account.format == form
    [group] = groups
    assert P in content(group.prompt)
    assert [content(response) for response in group.responses] == [G]
    assert (group.labels, group.judgements) == (labels, ())


REFUSED = [
    ("tools", {"prompt": ASK, "chosen": GOOD, "rejected": BAD, "tools": [{"of": "w"}]}, "'tools'"),
    ("images", {**PAIR, "images": ["x.png"]}, "'images'"),
    ("nvidia/HelpSteer2 ratings", {"prompt": P, "response": G, "helpfulness": 4, "verbosity": 2}, "'helpfulness'"),
    ("prompts only", {"prompt": P}, "no response"),
    ("BeaverTails", {"prompt": P, "response": B, "category": {}, "is_safe": False}, r"label: is_safe.*is_safe == true"),
    ("thumbs down", {"prompt": P, "response": B, "thumbs_down": 1}, r"data.where=.*thumbs_down == false"),
    (
        "openai/summarize_from_feedback, axis",
        {"info": {"post": P}, "summary": item(G, axes={"overall": 7, "coverage": None}), "worker": "w"},
        "data.aspect to one of overall$",
    ),
    (
        "images in messages",
        {**PAIR, "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": P}]}]},
        "multimodal models",
    ),
    ("half a turn", {"messages": [*ASK, {**GOOD[0], "train_detail": [{"begin_offset": 0}]}]}, "parts of a turn"),
    ("no order", {"prompt": P, "responses": [G, B]}, "data.format=ordered"),
    ("dolly with context", {"instruction": P, "context": "c", "response": G}, "'context'"),
]


@pytest.mark.parametrize(("name", "row", "message"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_columns_that_cannot_be_used_are_refused(tmp_path: Path, name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_groups(str(write_jsonl(tmp_path / "rows.jsonl", [row])))
