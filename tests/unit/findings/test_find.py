"""Each planted defect is found in its row, and clean data have no findings."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.findings.find import find
from preftune.findings.kinds import KINDS, Findings
from preftune.types import Judgement, Message, PreferenceGroup, Text

WORDS = [
    "river",
    "stone",
    "window",
    "garden",
    "letter",
    "winter",
    "mountain",
    "bridge",
    "market",
    "village",
    "summer",
    "teacher",
    "doctor",
    "kitchen",
    "engine",
    "forest",
    "silver",
    "button",
    "candle",
    "mirror",
    "pocket",
    "basket",
    "ladder",
    "hammer",
    "needle",
    "thunder",
    "island",
    "harbour",
    "castle",
    "meadow",
]


def prose(seed: object, words: int = 24) -> str:
    draw = random.Random(str(seed))
    return " ".join(draw.choice(WORDS) for _ in range(words)).capitalize() + "."


def pair(prompt: Text, better: Text, worse: Text, line: int, probability: float = 1.0) -> PreferenceGroup:
    return PreferenceGroup(
        prompt, (better, worse), (Judgement(0, 1, probability=probability),), origin=f"f.jsonl:{line}"
    )


def clean(number: int, first: int = 1) -> list[PreferenceGroup]:
    return [pair(prose(("p", i), 12), prose(("c", i)), prose(("r", i)), i) for i in range(first, first + number)]


def places(findings: Findings) -> dict[str, dict[str, list[int]]]:
    return {
        kind: {place: [int(o.rpartition(":")[2]) for o in origins] for place, origins in by_place.items()}
        for kind, by_place in findings.lines.items()
    }


def test_random_prose_has_no_findings() -> None:
    groups = clean(200)
    result = find(groups, groups, clean(50, first=1000))
    assert places(result) == {}
    assert result.responses == {"chosen": 200, "rejected": 200}


@given(
    st.lists(
        st.tuples(*[st.lists(st.sampled_from("aáöñçéßжд日本語. ,!?\n"), min_size=1).map("".join)] * 3),
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_text_in_other_scripts_has_no_finding_of_its_content(texts: list[tuple[str, str, str]]) -> None:
    result = find([pair(*three, line) for line, three in enumerate(texts, 1)])
    comparisons = {"near-duplicates", "near-duplicate-prompts", "similar-responses", "contradictions", "cycles"}
    assert set(result.lines) <= {*comparisons, "loops", "echoes"}


LONG = prose("long")
CONTENT: list[tuple[str, str]] = [
    ("refusals", "I'm sorry, but I can't help with that."),
    ("refusals", "I’m sorry, but as an AI I cannot assist with this."),
    ("refusals", "As an AI language model, I cannot do that."),
    ("refusals", "I cannot provide instructions for that."),
    ("unclosed-fences", "Here:\n```python\nprint(1)\n"),
    ("unclosed-fences", "~~~~\ncode\n~~~\nmore"),
    ("template-tokens", f"{LONG}<|im_end|>\n<|im_start|>user\nnext"),
    ("template-tokens", f"{LONG}</s>"),
    ("template-tokens", f"[INST] {LONG}"),
    ("template-tokens", f"{LONG} <｜end▁of▁sentence｜>"),
    ("template-tokens", f"{LONG}<end_of_turn>"),
    ("role-markers", f"{LONG}\n\nHuman: and then?"),
    ("role-markers", f"{LONG}\nUser: and then?"),
    ("role-markers", f"### Response:\n{LONG}"),
    ("encoding", "Itâ€™s a fine day"),
    ("encoding", "cafÃ© au lait"),
    ("encoding", "ÐŸÑ€Ð¸Ð²ÐµÑ‚"),
    ("encoding", "caf\ufffd"),
    ("encoding", "half \ud83d"),
    ("encoding", "zero\x00"),
    ("html", f"<p>{LONG}</p><br/>"),
    ("html", "a &nbsp; b"),
    ("loops", "no " * 60),
    ("loops", f"{LONG} " + "and then we went to the sea again " * 6),
    ("loops", "哈" * 80),
]


@pytest.mark.parametrize(("kind", "text"), CONTENT)
@pytest.mark.parametrize("chat", [False, True])
def test_a_planted_defect_is_found_on_its_side(kind: str, text: str, chat: bool) -> None:
    def form(text: str, role: str) -> Text:
        return (Message(role, text),) if chat else text

    groups = clean(6)
    prompt = form(prose("question", 10), "user")
    answer, defect = form(prose("answer"), "assistant"), form(text, "assistant")
    groups[3] = pair(prompt, defect, answer, 4)
    groups[5] = pair(form(prose("other question", 10), "user"), form(prose("b"), "assistant"), defect, 6)
    assert places(find(groups)) == {kind: {"chosen": [4], "rejected": [6]}}


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that. Here is what you can do.",
        "I can't wait to see it!",
        "Here:\n```python\nx = '<|im_end|>'\nUser: x\n<p>\n```\nDone.",
        "One line: ```code``` and `</s>`, `<br>`.",
        "1. First:\n   ```sh\n   ls\n   ```\n2. Second",
        "````md\n```\ninner\n```\n````",
        "Das schöne Café in Ærø: «CAFÉ», „ÀÉ“, São Tomé, NÃO, naïve – à l’été… Größe 5 m², 20 °C",
        "今天天气很好，阳光明媚。 Привет, как дела? Ñandú",
        "<s>struck out</s> and a < b, b > c, x <- y",
        "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "The user: a person. Ask the Human resources.",
        "👩‍👩‍👧 family\tand\r\nlines",
    ],
)
def test_correct_text_is_not_a_finding(text: str) -> None:
    assert places(find([pair(prose("q", 10), text, prose("a"), 1)])) == {}


def test_html_is_no_finding_if_the_prompt_asks_for_it() -> None:
    assert places(find([pair("Write a web page in HTML with a short greeting", "<p>Hello</p>", prose("a"), 1)])) == {}


@pytest.mark.parametrize("prompt", [
    "What is the capital of France?",
    "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: What is the capital of France?\n\nAssistant:",
    (Message("system", "Be brief."), Message("user", "What is the capital of France?")),
])  # fmt: skip
def test_an_echo_of_the_last_turn_is_found(prompt: Text) -> None:
    echo = "what is the capital of  France? It is Paris."
    assert places(find([pair(prompt, "Paris is its capital.", echo, 7)])) == {"echoes": {"rejected": [7]}}
    other = "You ask what the capital of France is? It is Paris."
    assert places(find([pair(prompt, "Paris is its capital.", other, 7)])) == {}


def test_repeated_rows_are_listed_without_the_first_one() -> None:
    groups = clean(5)
    p, (a, b) = groups[1].prompt, groups[1].responses
    groups += [pair(p, a, b, 6), pair(f"{p} ".upper(), f"{a} ", str(b).lower(), 7), pair(p, prose("n"), b, 8)]
    assert places(find(groups)) == {
        "near-duplicates": {"exact": [6], "near": [7]},
        "near-duplicate-prompts": {"row": [7]},
    }


def test_near_duplicates_need_similar_texts_on_the_same_sides() -> None:
    prompt, a, b = prose("long prompt", 300), "Yes, it is.", "No, never."
    groups = [pair(prompt, a, b, 1), pair(prompt, "Perhaps so", "I do not know", 2), pair(prompt, b, a, 3)]
    assert places(find(groups)) == {"contradictions": {"row": [1, 3]}}


def test_similar_responses() -> None:
    a = prose("a")
    rows = [pair(prose("p", 9), a, a.replace(".", ", really."), 1), pair(prose("q", 9), a[:60], a, 2)]
    assert places(find(rows)) == {"similar-responses": {"row": [1]}}


def test_a_cycle_over_rows_is_found_and_a_chain_is_not() -> None:
    p, (a, b, c, d) = prose("p", 10), [prose(i) for i in "abcd"]
    chain = [pair(p, a, b, 1), pair(p, b, c, 2), pair(p, c, d, 3)]
    assert places(find(chain)) == {}
    assert places(find([*chain, pair(prose("other", 10), c, a, 4)])) == {}  # of another prompt
    assert places(find([*chain, pair(f"{p.upper()} ", c, f"{a}\n", 4)]))["cycles"] == {"row": [1, 2, 4]}
    assert places(find([*chain, pair(p, a, c, 4, probability=0.2)])) == {"cycles": {"row": [1, 2, 4]}}
    assert places(find([*chain, pair(p, c, a, 4, probability=0.5)])) == {}  # a tie
    ranked = PreferenceGroup(p, (c, a), (Judgement(0, 1),), origin="f.jsonl:9")
    assert places(find([*chain, ranked])) == {"cycles": {"row": [1, 2, 9]}}


def test_leaks_are_found_in_any_form() -> None:
    groups = clean(30)
    texts = [str(group.prompt) for group in groups]
    chats = [(Message("system", "Be brief."), Message("user", texts[4])), (Message("user", f"{texts[5]} Please."),)]
    hh = f"\n\nHuman: {texts[6]}\n\nAssistant:"
    prompts: list[Text] = [texts[1], texts[2].upper(), f" {texts[3]}\n", *chats, hh, prose("new", 12), texts[1]]
    held_out = [pair(prompt, "yes", "no", line) for line, prompt in enumerate(prompts, 1)]
    assert places(find(groups, groups, held_out)) == {
        "leaks": {"training": [2, 3, 4, 5, 6, 7], "evaluation": [1, 2, 3, 4, 5, 6, 8]}
    }


def test_labels_give_sides_and_a_bare_number_is_not_a_prompt() -> None:
    refusal = "I'm sorry, but I can't help with that."
    labelled = [PreferenceGroup(prose(i, 9), (refusal,), labels=(i,), origin=f"f:{i + 2}") for i in (1, -1)]
    assert places(find(labelled)) == {"refusals": {"chosen": [3], "rejected": [1]}}
    assert places(find([PreferenceGroup("17", (refusal,), origin="f:1")])) == {
        "refusals": {"response": [1]},
        "bare-prompts": {"prompt": [1]},
    }
    assert places(find([pair("2 + 2 = ?", "It is 4.", prose("a"), 1)])) == {}


def test_no_groups() -> None:
    assert find([]) == Findings()
    assert {kind: entry["rows"] for kind, entry in find([]).as_json().items()} == dict.fromkeys(KINDS, 0)


def test_the_bias_of_length_and_format() -> None:
    markdown = "# Title\n\n- **one**\n- two\n"
    groups = [pair(prose(i, 9), markdown + prose(("c", i), 30), prose(("r", i), 20), i) for i in range(8)]
    groups += [pair(prose(i, 9), prose(("c", i), 5), markdown + prose(("r", i)), i) for i in range(8, 10)]
    bias = find(groups).bias
    assert set(bias) == {"longer", "markdown heading", "list", "bold"}
    assert bias["bold"].chosen is not None
    assert bias["bold"].rejected is not None
    assert (bias["bold"].chosen.share, bias["bold"].rejected.share) == (0.8, 0.2)
    for name in bias:
        preferred = bias[name].preferred
        assert (preferred.count, preferred.total, preferred.share) == (8, 10, 0.8)
        # Wilson's interval for 8 of 10, from R: prop.test(8, 10, correct = FALSE)
        assert (preferred.low, preferred.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


@pytest.mark.parametrize(
    "text", ["   " * 5000 + "x", "- " * 5000 + "x", "**a" * 5000, "`" * 5000 + " ` " * 5000, "<a " * 5000, "-" * 20000]
)
def test_odd_texts_end(text: str) -> None:
    """A pattern with quadratic or worse time would take minutes here."""
    assert find([pair(prose("p", 9), text, prose("a"), 1)]).responses == {"chosen": 1, "rejected": 1}
