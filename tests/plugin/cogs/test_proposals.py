"""Prompts for new instructions, and the reading of what small models answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from adaseek.cogs._proposals import (
    Failure,
    cleaned,
    improvement_prompt,
    objection,
    opening_prompt,
)
from adaseek.workflow import Example, Field, Signature, Step, Workflow
from hypothesis import given
from hypothesis import strategies as st

SIGNATURE = Signature(
    "Answer the question in one word.",
    (
        Field("question", "input", description="what a user asks"),
        Field("label", "output", "Literal['positive', 'negative']"),
    ),
)
STEP = Step("qa", signature=SIGNATURE)
WORKFLOW = Workflow(
    "dspy",
    {"search": Step("search", kind="tool"), "qa": STEP, "bare": Step("bare", kind="lm")},
)
TRAIN = (
    Example("1", {"question": "Who wrote the old red book about the sea?"}, {"answer": "Marlowe"}),
    Example("2", {"question": "Which river is the longest one in Europe?"}, {"answer": "Volga"}),
    Example("3", {"question": "Is it raining?"}, {"answer": "maybe"}),
    Example("4", {"question": "Is it snowing?"}, {"answer": "maybe"}),
)
TEXT = "Answer the question with exactly one word."


def test_the_opening_prompt_tells_program_step_fields_data_and_instructions() -> None:
    prompt = opening_prompt(WORKFLOW, STEP, TRAIN, angle="Be terse.", num_words=50)
    for part in (
        "1. search: a tool",
        "2. qa: Answer the question in one word.",
        "The step to work on: qa\n",
        "- question (str): what a user asks",
        "- label (Literal['positive', 'negative'])\n",
        "The data of the program:",
        "- input question: a sentence or two",
        "- wanted answer: one word or number",
        "<instructions>\nAnswer the question in one word.\n</instructions>",
        "Be terse.",
        "at most 50 words",
    ):
        assert part in prompt
    assert "Marlowe" not in prompt


def test_the_data_summary_names_classes() -> None:
    train = [Example(str(i), {"x": i}, {"label": "ab"[i % 2]}) for i in range(8)]
    prompt = opening_prompt(WORKFLOW, STEP, train, angle="", num_words=9)
    assert "- wanted label: one of a, b" in prompt
    assert "- input x: one word or number" in prompt


def test_a_copy_is_called_by_the_name_of_its_step() -> None:
    copy = replace(STEP, id="qa#all", parent="qa")
    one, two = (opening_prompt(WORKFLOW, s, TRAIN, angle="", num_words=9) for s in (STEP, copy))
    assert one == two


def test_braces_in_the_users_text_are_kept() -> None:
    step = replace(STEP, signature=replace(SIGNATURE, instructions="Fill {slot} and {0}."))
    assert "Fill {slot} and {0}." in opening_prompt(WORKFLOW, step, [], angle="", num_words=9)


def test_the_improvement_prompt_shows_failures() -> None:
    failure = Failure(
        {"question": "Why?"}, {"label": {"a": 1}}, {"answer": "x" * 1000}, "Too long.\nReally."
    )
    prompt = improvement_prompt(
        WORKFLOW,
        STEP,
        TRAIN,
        instructions="Say something.",
        score=0.25,
        num_runs=8,
        failures=[failure, Failure({}, {}, {})],
        angle="Be terse.",
        num_words=50,
    )
    for part in (
        "<instructions>\nSay something.\n</instructions>",
        "mean score of 0.25 over 8 runs",
        "Run 1\n  got question: Why?",
        '  answered label: {"a":1}',
        "  wanted answer: xxx",
        "  comment: Too long. Really.",
        "Run 2",
    ):
        assert part in prompt
    assert "x" * 301 not in prompt


@pytest.mark.parametrize(
    "answer",
    [
        TEXT,
        f"<instructions>\n{TEXT}\n</instructions>",
        f"Sure!\n<instructions>{TEXT}</instructions>\nThis is better because ...",
        f"<INSTRUCTIONS>\n{TEXT}",
        f"```\n{TEXT}\n```",
        f"```text\n<instructions>\n{TEXT}\n</instructions>\n```",
        f'"{TEXT}"',
        f"`{TEXT}`",
        f"**{TEXT}**",
        f"Here are the new instructions:\n\n{TEXT}",
        f"Instructions: {TEXT}",
        f"### New instructions:\n{TEXT}",
        f"New Instructions:\n{TEXT}  \n",
        f"{TEXT}\n</instructions>",
    ],
)
def test_what_models_write_around_their_answer_goes(answer: str) -> None:
    assert cleaned(answer, max_characters=500) == TEXT


def test_lists_and_paragraphs_stay() -> None:
    text = "Do this:\n1. Read.\n2. Answer.\n\n- Be brief."
    assert cleaned(text.replace("\n\n", "\n\n\n\n"), max_characters=500) == text


def test_a_long_answer_ends_with_a_whole_sentence_or_line() -> None:
    assert cleaned("One. Two is here. Three", max_characters=20) == "One. Two is here."
    assert cleaned("- one two\n- three four", max_characters=14) == "- one two"
    assert cleaned("word " * 50, max_characters=20) == ""


@given(st.text(max_size=200), st.integers(1, 100))
def test_cleaning_never_exceeds_the_limit_and_leaves_no_tags(text: str, limit: int) -> None:
    found = cleaned(f"<instructions>{text}", max_characters=limit)
    assert len(found) <= limit
    assert "<instructions>" not in found
    assert found == found.strip()


def judged(text: str, *, known: tuple[str, ...] = ()) -> str | None:
    return objection(text, signature=SIGNATURE, known=known, train=TRAIN)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "too short"),
        ("Answer.", "too short"),
        ("[[ ## answer ## ]] is what you write.", "marks"),
        ("Write <instructions> and then some.", "marks"),
        ("Fill in {question} with a good answer.", "template variables"),
        ("be very very " * 20, "repeats itself"),
        ("If they ask for the book, say Marlowe at once.", "Marlowe"),
        ("Be careful: VOLGA is a river, not a lake.", "Volga"),
        (
            "Think about who wrote the old red book about the sea before answering.",
            "about the sea",
        ),
    ],
)
def test_answers_that_must_not_become_instructions(text: str, reason: str) -> None:
    found = judged(text)
    assert found is not None
    assert reason.casefold() in found.casefold() or "gives away" in found


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "Say maybe if the question has no answer.",  # a class: two examples share it
        "Answer with positive or negative and nothing else.",  # the signature's own words
        "Answer in one word, written without a marlowesque flourish.",
    ],
)
def test_good_instructions_pass(text: str) -> None:
    assert judged(text) is None


def test_instructions_that_are_known_are_not_new() -> None:
    assert judged("  answer the question with exactly ONE word", known=(TEXT,)) == "it is not new"


def test_template_variables_of_the_original_must_stay() -> None:
    signature = replace(SIGNATURE, instructions="Answer {question} briefly.")
    kept = "Give a short answer to {question}, please."
    assert objection(kept, signature=signature, known=(), train=()) is None
    assert objection(TEXT, signature=signature, known=(), train=()) is not None


def test_numbers_and_nested_labels_are_answers_too() -> None:
    train = [Example("1", {}, {"gold": {"values": [18311.5, "Xerxes"]}})]
    for text in ("The usual answer is 18311.5 here.", "Consider whether it is Xerxes again."):
        assert objection(text, signature=SIGNATURE, known=(), train=train) is not None
