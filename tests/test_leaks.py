"""No prompt depends on gold answers or annotations: the metamorphic check, on every built-in task, and on tasks that it must catch."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from test_rows import packed
from test_tasks import DATA, attriqa_tree, qa_tree, real_data, write

from fiat_ray import leaks
from fiat_ray.errors import UserError
from fiat_ray.leaks import leaking_rows
from fiat_ray.render import Renderer
from fiat_ray.rows import read_rows
from fiat_ray.task import SPLITS
from fiat_ray.task_folder import BUILT_IN, gold_fields, read_task

TASKS = sorted(path.parent.name for path in BUILT_IN.glob("*/task.yaml"))
ROOMY, NARROW = 8192, 1800
"""Bounds on a prompt, in tokens: all passages fit, or most of real ones are cut."""


@pytest.fixture(scope="module")
def renderer(tiny: Path) -> Renderer:
    return Renderer(tiny)


def official(folder: Path, name: str) -> Path | None:
    """Rows in a built-in task's official layout; none for the one that makes its own."""
    trees = {"xor_attriqa": attriqa_tree, "xtreme_up_qa": qa_tree}
    return write(folder, trees[name]()) if name in trees else None


@pytest.mark.parametrize("name", TASKS)
def test_no_prompt_of_a_built_in_task_depends_on_gold(tmp_path: Path, renderer: Renderer, name: str) -> None:
    assert leaking_rows(name, official(tmp_path, name), renderer, ROOMY) == []


@real_data
@pytest.mark.parametrize("max_length", [ROOMY, NARROW])
@pytest.mark.parametrize("name", ["xor_attriqa", "xtreme_up_qa"])
def test_no_prompt_of_a_real_row_depends_on_gold(tmp_path: Path, renderer: Renderer, name: str, max_length: int) -> None:
    """Nor does where its passage is cut."""
    paths = sorted(DATA.rglob("in-language/*.jsonl" if name == "xor_attriqa" else "qa_cross_lang/*/[bhs]*.jsonl"))
    data = write(tmp_path, {str(path.relative_to(DATA)): [raw for _, raw in read_rows(path)][:10] for path in paths})
    assert leaking_rows(name, data, renderer, max_length) == []


def test_annotations_of_xor_attriqa_are_those_of_the_release() -> None:
    known = {"query", "query_language", "prediction", "passage_in_language", "passage_en", "passage_retrieved_language", "label"}
    of_rows = {name for rows in attriqa_tree().values() for row in rows for name in row}
    assert of_rows - known <= set(gold_fields("xor_attriqa"))
    assert not set(gold_fields("xor_attriqa")) & (known - {"label"})


def own_task(folder: Path, template: str, definition: str = "", reader: str = "") -> Path:
    """A task folder with eight rows a split, each with an annotator's vote."""
    rows = {
        split: [{"text": f"{split} {n}", "vote": n, "label": ["no", "yes"][n % 2]} for n in range(8)] for split in ("train", "validation", "test")
    }
    write(folder, {f"{split}.jsonl": part for split, part in rows.items()} | {"exemplars.jsonl": []})
    (folder / "task.yaml").write_text(f'input: "{template}"\ntarget: label\nlabels: ["no", "yes"]\nannotations: vote\n{definition}')
    for name in ("i_beta.txt", "i_tau.txt"):
        (folder / name).write_text("Say.")
    if reader:
        lines = [
            "from fiat_ray.task_folder import split_files",
            "def rows(data):",
            "    for place, split, raw in split_files(data):",
            f"        {reader}",
        ]
        (folder / "task.py").write_text("\n".join(lines))
    return folder


HONEST = "yield place, split, {'text': raw['text'], 'label': raw['label']}"
RENAMED = "yield place, split, {'text': f\"{raw['text']} {raw['vote']}\", 'label': raw['label']}"


@pytest.mark.parametrize(
    ("template", "reader", "caught"),
    [
        ("{text}", "", False),
        ("{text}", HONEST, False),
        ("{text}", RENAMED, True),
    ],
    ids=["no reader", "honest reader", "annotation under another name"],
)
def test_a_task_that_shows_gold_is_caught(tmp_path: Path, renderer: Renderer, template: str, reader: str, caught: bool) -> None:
    folder = own_task(tmp_path / "mine", template, reader=reader)
    found = leaking_rows(folder, None, renderer, ROOMY)
    assert bool(found) == caught
    if caught:
        assert {row.id for row in found} <= {row.id for row in read_task(folder, None, {}).rows} and len(found) > 5


def test_rows_of_a_csv_file_are_checked(tmp_path: Path, renderer: Renderer) -> None:
    folder = own_task(tmp_path / "mine", "{text}", "language: vote\n")  # which decides the exemplars
    worked = [{"text": "any", "rationale": "r", "target": "no", "language": language} for language in ("1", "2")]
    write(folder, {"exemplars.jsonl": worked})
    for split in SPLITS:
        rows = [raw for _, raw in read_rows(folder / f"{split}.jsonl")]
        (folder / f"{split}.jsonl").unlink()
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    assert len(leaking_rows(folder, None, renderer, ROOMY)) == 6


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_copied_into_its_folder_whatever_its_members_are_called(tmp_path: Path, kind: str) -> None:
    """An archive may name any path."""
    content = json.dumps({"text": "a"}).encode()
    archive = packed(tmp_path, kind, {name: content for name in ("../beside.jsonl", "in/../../../above.jsonl", "in/rows.jsonl")})
    folder = tmp_path / "for" / "copies"
    folder.mkdir(parents=True)
    copy = leaks._scrambled_files(archive, folder, dict)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path != archive] == [copy / "in" / "rows.jsonl"]


def test_a_cut_that_spares_the_gold_answer_is_caught(tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A well-meant cut around the answer would show where it stands."""
    from fiat_ray import length

    data = write(tmp_path, qa_tree())
    honest = length._text

    def spares(task: object, row: object, characters: int | None) -> str:
        return honest(task, row, characters) + row.targets[0][-1:]  # type: ignore[arg-type, attr-defined]

    monkeypatch.setattr(length, "_text", spares)
    assert leaking_rows("xtreme_up_qa", data, renderer, ROOMY)


def test_rows_that_are_chosen_by_gold_are_an_error(tmp_path: Path, renderer: Renderer) -> None:
    folder = own_task(tmp_path / "mine", "{text}", reader="if raw['vote'] > 3: " + HONEST)
    with pytest.raises(UserError, match=r"mine: 12 rows, but \d+ with other gold"):
        leaking_rows(folder, None, renderer, ROOMY)


@pytest.mark.parametrize("listed", ["vote", "[other, vote]"])
def test_a_template_that_names_an_annotation_is_refused(tmp_path: Path, listed: str) -> None:
    folder = own_task(tmp_path / "mine", "{text} why: {vote}")
    path = folder / "task.yaml"
    path.write_text(path.read_text().replace("annotations: vote", f"annotations: {listed}"))
    with pytest.raises(UserError, match=r"task\.yaml: input: the template holds 'vote', which is among the annotations"):
        read_task(folder, None, {})


def test_annotations_are_a_list_of_names(tmp_path: Path) -> None:
    folder = own_task(tmp_path / "mine", "{text}")
    assert gold_fields(folder) == ["label", "vote"]
    path = folder / "task.yaml"
    path.write_text(path.read_text().replace("annotations: vote", "annotations: {vote: 1}"))
    with pytest.raises(UserError, match=r"task\.yaml: annotations: must be a list of texts"):
        gold_fields(folder)
