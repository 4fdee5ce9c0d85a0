"""Step ids are made of positions and places in code, never of machine, run or caller."""

from __future__ import annotations

import sys

import pytest
from adaseek_langchain._keys import (
    call_site,
    child_path,
    position,
    step_id,
    tool_step_id,
    user_frame,
)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["seq:step:2"], "2"),
        (["map:key:a"], "a"),
        (["branch:default"], "branch default"),
        (["condition:1"], "condition 1"),
        (["mine", "seq:step:3"], "3"),
        (["mine"], ""),
        (None, ""),
    ],
)
def test_position_reads_only_structural_tags(tags: list[str] | None, expected: str) -> None:
    assert position(tags) == expected


def test_framework_class_with_a_position_needs_no_name() -> None:
    assert child_path((), "RunnableParallel<a,b>", ["seq:step:1"]) == ("1",)


def test_named_node_keeps_its_name_beside_the_position() -> None:
    assert child_path(("g",), "n2", ["seq:step:1"]) == ("g", "1.n2")


def test_step_id_joins_path_position_variant_and_site() -> None:
    assert step_id(("n2",), ["seq:step:1"], "@app:f+1", "m2") == "n2/1.lm[m2]@app:f+1"


def test_ids_never_hold_the_mark_of_ensemble_members() -> None:
    path = child_path((), "a#b")
    assert "#" not in step_id(path) + tool_step_id("x#y")


def test_call_site_names_file_function_and_line_from_the_definition() -> None:
    frame = sys._getframe()
    function = "test_call_site_names_file_function_and_line_from_the_definition"
    assert call_site(frame) == f"@test_keys:{function}+3"


def test_user_frame_is_the_innermost_one_of_user_code() -> None:
    def inner() -> str:
        frame = user_frame()
        assert frame is not None
        return frame.f_code.co_name

    assert inner() == "inner"
