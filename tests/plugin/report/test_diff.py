"""What a recipe changes, shown against the original program."""

from __future__ import annotations

import html
import re

from adaseek.recipe import Demo, Ensemble, Recipe, Setting, Subtask
from adaseek.report.diff import changed_steps, recipe_diff, recipe_words
from adaseek.workflow import ModelRef, Workflow


def shown(workflow: Workflow, **settings: Setting) -> str:
    """Returns the diff as text, marked words as [-x-] and [+x+]."""
    written = str(recipe_diff(workflow, Recipe(settings)))
    for name, sign in (("ins", "+"), ("del", "-")):
        written = written.replace(f"<{name}>", f"[{sign}").replace(f"</{name}>", f"{sign}]")
    return html.unescape(re.sub(r"<[^>]+>", "|", written))


def test_an_empty_recipe_changes_nothing(workflow: Workflow) -> None:
    assert "Nothing changes" in recipe_diff(workflow, Recipe())
    assert recipe_words(Recipe()) == "nothing"


def test_a_small_change_of_the_instructions_is_marked_by_word(workflow: Workflow) -> None:
    text = "Rewrite the question as a short search query."
    assert "as a [+short +]search query." in shown(workflow, rewrite=Setting(instructions=text))


def test_rewritten_instructions_are_shown_whole(workflow: Workflow) -> None:
    text = shown(workflow, rewrite=Setting(instructions="Think, then answer in German!"))
    assert "[-Rewrite the question as a search query.-]" in text
    assert "[+Think, then answer in German!+]" in text


def test_line_breaks_of_the_instructions_are_kept(workflow: Workflow) -> None:
    new = "Rewrite the question\n\nas a search query."
    assert "question[- -][+\n\n+]as" in shown(workflow, rewrite=Setting(instructions=new))


def test_settings_show_original_and_new(workflow: Workflow) -> None:
    text = shown(
        workflow,
        answer=Setting(
            model=ModelRef("small"),
            reasoning="chain_of_thought",
            ensemble=Ensemble(3, "judge", 0.5),
            params={"max_tokens": 20},
            engine={"token_tree": True},
            demos=(Demo({"question": "1+1", "answer": 2}),) * 2,
        ),
    )
    assert "openai/qwen-72b@http://127.0.0.1:8000/v1||small" in text
    assert "3 calls at temperature 0.5, a judge" in text
    assert "|1 demo||2 demos|" in text
    assert "|Parameter max_tokens||as written||20|" in text
    assert "|Serving token_tree||as written||true|" in text
    assert "|1+1||2|" in text


def test_removed_demos_are_a_change(workflow: Workflow) -> None:
    assert "|1 demo||0 demos|" in shown(workflow, answer=Setting(demos=()))


def test_subtasks_are_shown_with_their_instructions(workflow: Workflow) -> None:
    split = (Subtask("facts", "List them."), Subtask("check", "Check them."))
    text = shown(workflow, answer=Setting(decompose=split))
    assert "2 subtasks first" in text
    assert "|facts||List them.|" in text and "|check||Check them.|" in text


def test_members_of_an_ensemble_belong_to_their_step(workflow: Workflow) -> None:
    recipe = Recipe({"answer#0": Setting(params={"temperature": 1.0})})
    assert changed_steps(recipe) == {"answer"}
    assert "Unchanged: rewrite, check." in recipe_diff(workflow, recipe)


def test_a_step_that_the_workflow_lacks_is_shown_all_the_same(workflow: Workflow) -> None:
    assert "[+New.+]" in shown(workflow, gone=Setting(instructions="New."))


def test_hostile_demos_stay_text(workflow: Workflow) -> None:
    bad = "</td><script>alert(1)</script>"
    recipe = Recipe({"answer": Setting(instructions=bad, demos=(Demo({bad: bad}),))})
    assert "<script" not in recipe_diff(workflow, recipe)
