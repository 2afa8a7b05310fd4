"""A row's prompt as shown: the exact tokens, the loss mask, the cut, and the choices where it can't be shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fiat_ray import config as configs
from fiat_ray import prepare, prompts
from fiat_ray.config import Config
from fiat_ray.errors import UserError
from fiat_ray.reason.store import Store
from fiat_ray.recipe import RECIPES

FACTS = {"languages": ["el", "id"], "limit": {"train": 2, "validation": 1, "test": 2}}


def config(tiny: Path, **changes: Any) -> Config:
    values = {
        "task": "country_facts",
        "reasoner": {"model": str(tiny), "max_tokens": 32},
        "tunables": {"xs": {"model": str(tiny)}},
        "methods": ["icl", "fiat"],
        **FACTS,
        **changes,
    }
    return configs.load(values)


def pieces(shown: str) -> list[tuple[str, int, str]]:
    """Kind, tokens and text of each piece, read back from what is shown."""
    found: list[tuple[str, int, str]] = []
    for line in shown.splitlines():
        head = re.match(r"([a-z]*) +(\d*) ?[│┃] (.*)$", line)
        if head and head[1]:
            found.append((head[1], int(head[2]), head[3]))
        elif head:
            kind, tokens, text = found[-1]
            found[-1] = (kind, tokens, text + head[3])
    return [(kind, tokens, text.replace("⏎", "\n")) for kind, tokens, text in found]


def test_the_reasoners_prompt_is_shown_exactly(tiny: Path) -> None:
    prepared = prepare.prepare(config(tiny))
    requests = prepared.requests["country_facts"]
    renderer = prepare.make_renderer("reasoner", tiny)
    for number, row in enumerate(prepared.tasks["country_facts"].rows):
        shown = prompts.show(config(tiny), "reasoner", number)
        request = requests.of(requests.keys[row.id])
        ids = [*requests.prefixes[request["prefix"]], *request["ids"]]
        assert "".join(text for _, _, text in pieces(shown)) == renderer.tokenizer.decode(ids)
        assert sum(tokens for _, tokens, _ in pieces(shown)) == len(ids)
        assert request["key"] in shown and "exemplars: 4 of 4" in shown and f"id {row.id}" in shown
        assert f"{len(ids):,} tokens, 32 for the rationale: {len(ids) + 32:,} of max_length 2,048" in shown


@pytest.mark.parametrize("method", ["fiat", "no_cot", "no_instructions", "no_peft"])
def test_the_tunables_prompt_and_its_loss_mask(tiny: Path, method: str) -> None:
    shown = prompts.show(config(tiny), "tunable", 1, method)
    kinds = [kind for kind, _, _ in pieces(shown)]
    assert ("rationale" in kinds) == (method == "fiat") == (prompts.NOT_STORED in shown)
    assert ("instructions" in kinds) == RECIPES[method].instructions
    row = prepare.prepare(config(tiny)).tasks["country_facts"].rows[1]
    supervised = [line for line in shown.splitlines() if re.search(r"\d ┃", line)]
    assert len(supervised) == 1 and supervised[0].endswith(f"┃ {row.targets[0]}<|im_end|>"), "the answer and EOS, and nothing else"
    assert pieces(shown)[-1][0] == "target"


def test_a_stored_rationale_is_shown(tiny: Path, tmp_path: Path) -> None:
    requests = prepare.prepare(config(tiny)).requests["country_facts"]
    row = {"status": "ok", "text": "Because of this.\nAnswer: that", "finish_reason": "stop", "prompt_tokens": 1, "output_tokens": 9, "tries": 1}
    Store(tmp_path / "rationales").write([{"key": key, **row, "seconds": 1.0, "error": ""} for key in requests.distinct().to_pylist()])
    for found in (
        prompts.show(config(tiny), "tunable", 0, run=tmp_path),
        prompts.show(config(tiny, store=str(tmp_path / "rationales")), "tunable", 0),
    ):
        assert ("rationale", "\nreasoning: Because of this.\nAnswer: that") in [(kind, text) for kind, _, text in pieces(found)]
        assert "status ok" in found
    own = config(tiny, recipes={"bare": {"rationale": "without_answer"}}, methods=["bare"], store=str(tmp_path / "rationales"))
    assert "Answer: that" not in prompts.show(own, "tunable", 0, "bare")
    distilled = pieces(prompts.show(config(tiny), "tunable", 0, "distilled_cot", run=tmp_path))
    assert [text for kind, _, text in distilled if kind == "target"][1] == "Because of this.\nAnswer: that<|im_end|>"


def test_an_unreadable_rationale_is_empty(tiny: Path, tmp_path: Path) -> None:
    requests = prepare.prepare(config(tiny)).requests["country_facts"]
    row = {"status": "prompt_too_long", "text": "", "finish_reason": "", "prompt_tokens": 1, "output_tokens": 0, "tries": 1}
    Store(tmp_path / "rationales").write([{"key": key, **row, "seconds": 1.0, "error": ""} for key in requests.distinct().to_pylist()])
    shown = prompts.show(config(tiny), "tunable", 0, run=tmp_path)
    assert ("rationale", "\nreasoning:") in [(kind, text) for kind, _, text in pieces(shown)]
    assert "status prompt_too_long" in shown


def own_task(folder: Path, context: str, target: str) -> dict[str, Any]:
    """What a config says of a task with one row a split, their passage after a few words of their own."""
    for split in ("train", "validation", "test"):
        row = {"question": "which town?", "context": f"In {split} {context}", "target": target, "n": split}
        (folder / f"{split}.jsonl").write_text(json.dumps(row))
    (folder / "task.yaml").write_text(yaml.safe_dump({"input": "{question} {context}", "cut": "context", "group": "n"}))
    (folder / "i_beta.txt").write_text("Think.")
    (folder / "i_tau.txt").write_text("Say.")
    (folder / "exemplars.jsonl").write_text('{"question": "a", "context": "b", "rationale": "c", "target": "d"}\n')
    return {"task": str(folder), "languages": None, "limit": {}}


def test_what_was_cut_is_said(tiny: Path, tmp_path: Path) -> None:
    task = own_task(tmp_path, f"{'the town lies at the river.' * 40} It has a market \033[31m.", "market")
    shown = prompts.show(config(tiny, **task, reasoner={"model": str(tiny), "max_tokens": 32, "max_length": 200}), "reasoner", 0)
    assert re.search(r"cut: the last \d+ of 1,\d+ characters of context, the gold answer with it: …", shown)
    whole = prompts.show(config(tiny, **task), "reasoner", 0)
    assert "cut: nothing" in whole
    assert "\033" not in whole and r"\x1b[31m" in whole, "a row's own escape sequences are shown, not obeyed"


def test_what_is_said_of_a_row_is_one_line_that_no_terminal_obeys(tiny: Path, tmp_path: Path) -> None:
    task = own_task(tmp_path, "the river \033[2J" * 80, "two\nlines\033[2J")
    short = config(tiny, **task, reasoner={"model": str(tiny), "max_tokens": 32, "max_length": 200})
    first, second, *rest = prompts.show(short, "reasoner", 0).splitlines()
    assert first.endswith(r"target two\x0alines\x1b[2J")
    assert second.startswith("cut: the last ") and r"\x1b[2J" in second and not any("\033" in line for line in (first, second, *rest))


def test_color_changes_no_text(tiny: Path) -> None:
    colored = prompts.show(config(tiny), "tunable", 0, color=True)
    assert f"\033[{prompts.COLORS['target']}m" in colored
    assert re.sub(r"\033\[\d+m", "", colored) == prompts.show(config(tiny), "tunable", 0)


def test_a_script_sees_the_row(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("def reason(row): return ''\n")
    shown = prompts.show(config(tiny, reasoner={"kind": "scripted", "script": str(tmp_path / "script.py")}), "reasoner", 0)
    assert '"targets":' in shown and "script.py" in shown


def test_methods_that_the_config_lacks_can_be_looked_at(tiny: Path) -> None:
    assert "recipe no_peft" in prompts.show(config(tiny, methods=["majority"]), "tunable", 0, "no_peft")
    assert "exemplars: 4 of 4" in prompts.show(config(tiny, methods=["no_peft"]), "reasoner", 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tunable", 0, "fiatt"), "recipe 'fiatt' .* known are fiat, no_cot"),
        (("tunable", 0, "icl"), "recipe 'icl' .* known are fiat, no_cot"),
        (("reasoner", 10), "row 10: .* are 0 to 9"),
        (("reasoner", -1), "row -1: .* are 0 to 9"),
        (("tunable", 0, "no_instruction_tuned"), "tunables.xs.pretrained"),
    ],
)
def test_errors_name_the_choices(tiny: Path, arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        prompts.show(config(tiny), *arguments)
