"""The length budget: what is cut, by how much, and that it fits everywhere afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_model

from fiat_ray.config import TunableConfig
from fiat_ray.errors import UserError
from fiat_ray.length import Budget, Lengths, alike, measure
from fiat_ray.prepare import context_length, max_length
from fiat_ray.recipe import RECIPES, Recipe
from fiat_ray.render import Prompt, Renderer
from fiat_ray.task import Row, Task

REASONER_ROOM, TUNABLE_ROOM = 40, 60
WORDS = "The town নদীর lies at the river, where two roads meet. "
ROWS = tuple(
    tiny_model.row(n, "train", language, targets=("two roads",), context=WORDS * (n + 1)) for language in ("bn", "hi") for n in (0, 1, 3, 8, 20)
)
TASK = tiny_model.task(ROWS)
ALL_RECIPES = tuple(RECIPES.values())


@pytest.fixture(scope="module")
def renderers(tiny: Path, tiny_pretrained: Path) -> tuple[Renderer, Renderer]:
    return Renderer(tiny), Renderer(tiny_pretrained, chat=False)


def budgets(renderers: tuple[Renderer, Renderer], reasoner: int, tunable: int, recipes: tuple[Recipe, ...] = ALL_RECIPES) -> list[Budget]:
    chat, plain = renderers
    return [
        Budget("reasoner", chat, reasoner, REASONER_ROOM),
        Budget("tunables.xs", chat, tunable, TUNABLE_ROOM, recipes),
        Budget("tunables.xs.pretrained", plain, tunable, TUNABLE_ROOM, recipes),
    ]


def longest(budget: Budget, task: Task, lengths: Lengths, row: Row) -> int:
    """The longest prompt that any recipe makes of a row, and what is kept free."""
    text = lengths.texts[row.id]
    if not budget.recipes:
        prompts: list[Prompt] = [budget.renderer.reasoner_prompt(task, lengths.exemplars[row.language], text, row.language)]
    else:
        prompts = [budget.renderer.tunable_prompt(task, text, "", recipe) for recipe in budget.recipes]
        prompts += [budget.renderer.explain_prompt(task, text, recipe) for recipe in budget.recipes if recipe.cot == "distilled"]
    return max(map(len, prompts)) + budget.reserved


def passage(task: Task, row: Row, lengths: Lengths) -> str:
    before = task.text({**row.fields, "context": ""})
    assert lengths.texts[row.id].startswith(before)
    return lengths.texts[row.id][len(before) :]


def test_nothing_is_cut_when_it_fits(renderers: tuple[Renderer, Renderer]) -> None:
    lengths = measure(TASK, budgets(renderers, 2048, 2048))
    assert lengths.texts == {row.id: TASK.text(row.fields) for row in TASK.rows}
    assert not any(lengths.cut_characters.values()) and not lengths.cut and not lengths.gold_cut
    assert lengths.exemplars == {"bn": 3, "hi": 3}
    assert measure(TASK, []).texts == lengths.texts


def test_a_row_that_just_fits_is_whole_and_one_token_less_cuts_it(renderers: tuple[Renderer, Renderer]) -> None:
    whole = measure(TASK, [])
    row = ROWS[3]
    task = replace(TASK, rows=(row,))
    for recipes in ((), (RECIPES["no_cot"],), (RECIPES["distilled_cot"],), ALL_RECIPES):
        budget = Budget("one", renderers[0], 0, TUNABLE_ROOM, recipes)
        needed = longest(budget, task, whole, row)
        assert not measure(task, [replace(budget, max_length=needed)]).cut_characters[row.id]
        assert measure(task, [replace(budget, max_length=needed - 1)]).cut_characters[row.id] > 0


@pytest.mark.parametrize("reasoner", [220, 260, 300, 380, 700, 2048])
@pytest.mark.parametrize("tunable", [130, 200, 330, 2048])
def test_cut_rows_fit_every_budget_and_recipe_and_use_it(renderers: tuple[Renderer, Renderer], reasoner: int, tunable: int) -> None:
    found = budgets(renderers, reasoner, tunable)
    lengths = measure(TASK, found)
    for row in TASK.rows:
        left = [budget.max_length - longest(budget, TASK, lengths, row) for budget in found]
        assert min(left) >= 0
        shown = passage(TASK, row, lengths)
        assert row.fields["context"].startswith(shown)
        assert len(row.fields["context"][: len(row.fields["context"]) - lengths.cut_characters[row.id]].rstrip()) == len(shown.rstrip())
        if lengths.cut_characters[row.id]:
            assert min(left) <= 9  # not even the next character, of up to three tokens, would have fitted behind the white space
        assert lengths.texts[row.id].startswith(f"question: {row.fields['question']} context: ")  # only the passage gives way
    for language in ("bn", "hi"):
        assert lengths.cut[language] == sum(bool(lengths.cut_characters[row.id]) for row in TASK.rows if row.language == language)


def test_more_room_shows_more(renderers: tuple[Renderer, Renderer]) -> None:
    before = 0
    for room in range(330, 480, 15):
        lengths = measure(TASK, budgets(renderers, room, 2048))
        if lengths.exemplars["bn"] == 3:
            shown = sum(len(passage(TASK, row, lengths)) for row in TASK.rows)
            assert shown >= before
            before = shown


def test_exemplars_give_way_after_the_passage_and_for_the_whole_language(renderers: tuple[Renderer, Renderer]) -> None:
    hindi = tiny_model.row(99, "test", "hi", question="a question so long that less room is left, " * 5)
    task = replace(TASK, rows=(*ROWS, hindi))
    seen = set()
    for room in range(330, 480, 10):
        lengths = measure(task, [Budget("reasoner", renderers[0], room, REASONER_ROOM)])
        seen.add((lengths.exemplars["bn"], lengths.exemplars["hi"]))
        assert lengths.exemplars["hi"] <= lengths.exemplars["bn"]
        if lengths.exemplars["hi"] < 3:
            # One exemplar more would have left no room for the longest row even without its passage.
            more = renderers[0].reasoner_prompt(task, lengths.exemplars["hi"] + 1, task.text({**hindi.fields, "context": ""}), "hi")
            assert len(more) + REASONER_ROOM > room
    assert {hi for _, hi in seen} == {1, 2, 3}


def test_a_row_that_cannot_fit_is_named(renderers: tuple[Renderer, Renderer]) -> None:
    wrong = tiny_model.row(99, "test", "hi", question="long " * 400)
    task = replace(TASK, rows=(*ROWS, wrong))
    with pytest.raises(UserError, match=rf"{wrong.id} \(test, language hi\) .* reasoner even with an empty context and one exemplar: \d+ tokens"):
        measure(task, budgets(renderers, 600, 2048))
    with pytest.raises(UserError, match=rf"{wrong.id} .*tunables.xs even with an empty context: .* raise max_length of the tunables.xs"):
        measure(task, budgets(renderers, 2048, 600))
    with pytest.raises(UserError, match="does not fit"):  # without a field that may be cut, nothing gives way
        measure(replace(TASK, cut=None), budgets(renderers, 2048, 300))


def test_gold_answers_that_were_cut_away_are_counted(renderers: tuple[Renderer, Renderer]) -> None:
    rows = (
        tiny_model.row(1, context=WORDS * 20 + "It is Gold.", targets=("Gold",)),
        tiny_model.row(2, context="It is Gold. " + WORDS * 20, targets=("Gold",)),
        tiny_model.row(3, context=WORDS * 20 + "It is Gold.", targets=("Gold", "river")),  # another answer is still there
        tiny_model.row(4, context=WORDS * 20 + "It is Gold.", targets=("Gold",), question="Gold?"),  # in the question, but no longer in the passage
        tiny_model.row(5, context=WORDS * 20, targets=("Gold",)),  # was never there
    )
    task = tiny_model.task(rows)
    lengths = measure(task, budgets(renderers, 2048, 250))
    assert lengths.cut == {"bn": 5} and lengths.gold_cut == {"bn": 2}
    labelled = replace(task, labels=("Gold", "river"), metric="accuracy")
    assert not measure(labelled, budgets(renderers, 2048, 250)).gold_cut.total()  # labels stand in no passage


def test_a_target_is_never_cut(renderers: tuple[Renderer, Renderer]) -> None:
    row = tiny_model.row(1, context=WORDS * 20, targets=("a long answer " * 20,))
    task = tiny_model.task((row,))
    measure(task, budgets(renderers, 2048, 250))
    assert task.rows[0].targets == row.targets
    prompt = renderers[0].tunable_prompt(task, "x", None, RECIPES["no_cot"]) + [renderers[0].target(row.targets[0])]
    assert renderers[0].decode([token for token in prompt.labels if token >= 0]) == row.targets[0].strip()


def test_exemplars_give_way_for_a_row_of_its_own(tiny: Path) -> None:
    short, long = tiny_model.row(0), tiny_model.row(1, question="which town is it? " * 8)
    other = tiny_model.row(2, language="hi")
    task = tiny_model.task((short, long, other))
    renderer = Renderer(tiny)
    room = len(renderer.reasoner_prompt(task, 3, task.text(short.fields), "bn", "row_language")) + 8
    budgets = [Budget("reasoner", renderer, room, 8)]
    assert measure(task, budgets).exemplars == {"bn": 2, "hi": 3}
    found = alike(task, budgets, "row_language", {"bn": 3, "hi": 3})
    assert [([row.id for row in part.rows], lengths.exemplars) for part, lengths in found] == [
        ([other.id], {"hi": 3}),
        ([short.id], {"bn": 3}),
        ([long.id], {"bn": 2}),
    ]
    task = tiny_model.task((short, other))
    [(part, lengths)] = alike(task, budgets, "row_language", {"bn": 2})
    assert part is task and lengths.exemplars == {"bn": 2, "hi": 3}, "as many as the run showed"


def test_a_length_that_the_model_was_not_made_for_is_refused(tiny: Path) -> None:
    most = context_length(tiny)
    assert max_length("tunables.xs", TunableConfig(model=str(tiny), max_length=most), tiny) == most
    with pytest.raises(UserError, match=f"tunables.xs.max_length: {most + 1} is more than the model's {most} positions"):
        max_length("tunables.xs", TunableConfig(model=str(tiny), max_length=most + 1), tiny)
