"""The search in three layers, on the space of a workflow with ensembles of separate members."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import pytest
from adaseek import events
from adaseek.cogs import CogContext, EnsembleCog, ModelCog, OptionTable, ReasoningCog, build_space
from adaseek.recipe import Recipe
from adaseek.search.adaseek import AdaSeek, SearchSettings
from adaseek.search.base import FAMILIES, LeafRun, Outcome, Space
from adaseek.testing.scripted import ScriptedProgram
from adaseek.workflow import ModelRef

NUM_EXAMPLES = 4
BUDGET = 2480  # 620 full trials, where three layers need 611


@pytest.fixture(scope="module")
def built() -> tuple[Space, OptionTable]:
    workflow = ScriptedProgram(lambda settings, example: None).workflow()
    context = CogContext(workflow, models=(ModelRef("large"), ModelRef("small")))
    cogs = (EnsembleCog(sizes=(2, 3), aggregates=("majority",)), ModelCog(), ReasoningCog())
    return build_space(workflow, cogs, context, members="separate")


@pytest.fixture(scope="module")
def searched(
    built: tuple[Space, OptionTable],
) -> tuple[AdaSeek, list[LeafRun], list[events.Event]]:
    space, table = built
    asked: list[LeafRun] = []
    heard: list[events.Event] = []

    def evaluate(runs: Sequence[LeafRun]) -> list[Outcome]:
        asked.extend(runs)
        return [outcome(table.recipe(run.config), run.example) for run in runs]

    settings = SearchSettings(BUDGET, NUM_EXAMPLES, ("quality", "cost"), patience=BUDGET)
    search = AdaSeek(space, settings, evaluate, seed=3, listen=heard.append)
    search.run()
    return search, asked, heard


def outcome(recipe: Recipe, example: int) -> Outcome:
    """Reasoning helps each step or copy that has it; every setting costs."""
    num_reasoning = sum(bool(s.reasoning) for s in recipe.settings.values())
    chance = min(0.95, 0.3 + 0.12 * num_reasoning)
    text = f"{recipe.fingerprint}/{example}".encode()
    draw = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
    return Outcome(float(draw < chance), 1.0 + len(recipe.settings))


def test_every_layer_has_a_choice_and_members_have_dimensions_of_their_own(built):
    space, _ = built
    for family in FAMILIES:
        assert any(d.family == family and len(d.options) >= 2 for d in space.dimensions), (
            f"no choice in {family}"
        )
    inner = [d for d in space.dimensions if d.parent is not None and d.family == "weight"]
    owners = {d.name.rsplit(":", 1)[0] for d in inner}
    assert len(owners & {name for name in owners if "#" in name}) >= 2


def test_three_layers_are_searched_within_the_budget_and_nothing_twice(searched):
    search, asked, _ = searched
    assert search.plan.families == (("structure",), ("step",), ("weight",))
    assert len(asked) == search.num_runs <= BUDGET
    keys = Counter((frozenset(run.config.items()), run.example) for run in asked)
    assert max(keys.values()) == 1


def test_members_are_tuned_apart(searched):
    search, _, _ = searched
    apart = [
        record.config
        for record in search.archive.judged()
        if len(
            {
                option
                for name, option in record.config.items()
                if "#" in name and name.endswith(":reasoning")
            }
        )
        >= 2
    ]
    assert apart, "no config gave two members of an ensemble different reasoning"


def test_every_leaf_keeps_the_values_of_the_arms_that_it_belongs_to(searched):
    search, _, heard = searched
    started = {e.trial: e for e in heard if isinstance(e, events.TrialStarted)}
    leaves = [r for r in search.archive.judged() if r.number != 0]
    assert leaves
    for record in leaves:
        assert len(record.arm) == 2
        structure, step = (started[number] for number in record.arm)
        assert structure.layer == 0 and step.layer == 1 and step.arm == (structure.trial,)
        assert structure.config.items() <= step.config.items() <= record.config.items()


def test_every_structure_is_tried_first_under_its_original_inner_options(searched):
    search, _, heard = searched
    started = {e.trial: e for e in heard if isinstance(e, events.TrialStarted)}
    structures = {record.arm[0] for record in search.archive.judged() if record.arm}
    assert len(structures) >= search.settings.chunk
    for number in structures:
        first = next(r for r in search.archive.records if r.arm[:1] == (number,))
        outer = started[number].config
        if outer == {d.name: d.options[0] for d in search.space.dimensions if d.name in outer}:
            continue  # the original itself was run before any arm was opened
        assert all(
            option == search.space.dimension(name).options[0]
            for name, option in first.config.items()
            if name not in outer
        )
