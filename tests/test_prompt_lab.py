"""The prompt lab: the reasoner answers while somebody writes its prompt, and two prompts are compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import chat_server
import pytest
import yaml
from test_cli import own_task, refused

from fiat_ray import config as configs
from fiat_ray import prompt_lab
from fiat_ray.cli import main

TOWNS = 24


@pytest.fixture
def chat() -> Iterator[chat_server.ChatServer]:
    with chat_server.serving() as chat:
        yield chat


def lines(split: str) -> str:
    rows = [{"question": f"{split} {at}", "context": "c", "target": f"{split} {at}", "language": ("en", "fi")[at % 2]} for at in range(TOWNS)]
    return "\n".join(json.dumps(row) for row in rows)


@pytest.fixture
def config(tmp_path: Path, chat: chat_server.ChatServer) -> Path:
    task = own_task(tmp_path, **{f"{split}.jsonl": lines(split) for split in ("train", "validation", "test")})
    values = {"task": str(task), "reasoner": {"kind": "openai", "model": "m", "base_url": chat.url, "max_tokens": 48}, "methods": ["icl"]}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def careful(messages: list[dict[str, str]]) -> str:
    """Right where the instructions ask for care."""
    question = messages[-1]["content"].split("question: ")[-1].split(" context:")[0]
    return f"It asks for {question}.\nAnswer: {question if 'carefully' in messages[0]['content'] else 'nothing'}"


def test_a_row_is_answered_beside_its_gold(config: Path, chat: chat_server.ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompt", str(config), "--ask", "--row", str(TOWNS)]) == 0
    shown = capsys.readouterr().out
    assert "mytask: validation, language" in shown and "about validation" in shown
    assert "  answer     yes" in shown and "  gold       validation" in shown and "· F1 0" in shown
    assert len(chat.requests) == 1


def test_a_sample_is_scored_on_validation(config: Path, chat: chat_server.ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    chat.reply = careful
    assert main(["prompt", str(config), "--sample", "10"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("  gold ") == 10 and "mean       10 validation rows: F1 0.0, Exact match 0.0, Unparsed % 0.0" in shown
    assert len(chat.requests) == 10 and all("test" not in request["messages"][-1]["content"] for request in chat.requests)


def test_one_prompt_is_better_than_another(tmp_path: Path, config: Path, chat: chat_server.ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    chat.reply = careful
    (tmp_path / "a.txt").write_text("Think.")
    (tmp_path / "b.txt").write_text("Think carefully.")
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert main(["prompt", str(config), "--compare", *files]) == 0
    shown = capsys.readouterr().out
    assert f"B less A on {TOWNS} validation rows: +100.0, 95 % interval" in shown and shown.strip().endswith("the difference is real")
    assert len(chat.requests) == 2 * TOWNS
    assert main(["prompt", str(config), "--compare", files[0], files[0], "--sample", "12"]) == 0
    assert "12 validation rows: +0.0" in capsys.readouterr().out and len(chat.requests) == 2 * TOWNS + 12, "one prompt is asked once"


def test_a_saved_file_is_asked_about_again(tmp_path: Path, config: Path, chat: chat_server.ChatServer) -> None:
    saves = iter(["", "Think twice.", "Think twice."])
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if text.startswith("waiting"):
            if (content := next(saves, None)) is None:
                raise KeyboardInterrupt
            (tmp_path / "mytask" / "i_beta.txt").write_text(content)

    with pytest.raises(KeyboardInterrupt):
        prompt_lab.watch(configs.load(config), once=False, show=show)
    assert sum("is empty; it holds the instructions" in text for text in shown) == 1
    assert [request["messages"][0]["content"].split("\n")[0] for request in chat.requests] == ["Think.", "Think twice."]
    assert sum(text.startswith("  gold") for text in shown) == 3


def test_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "it is the reasoner that is asked" in refused(capsys, "prompt", str(config), "--ask", "--for", "tunable")
    assert "row 999: there is none" in refused(capsys, "prompt", str(config), "--ask", "--row", "999")
    assert "no such file; it holds the instructions" in refused(capsys, "prompt", str(config), "--compare", "nowhere.txt", "neither.txt")
    assert "'0' is no whole number above 0" in refused(capsys, "prompt", str(config), "--sample", "0")


def test_rows_without_an_answer_are_no_result(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("def reason(row):\n    raise SystemExit(row['split'])\n")
    values = yaml.safe_load(config.read_text()) | {"reasoner": {"kind": "scripted", "script": str(tmp_path / "broken.py")}}
    config.write_text(yaml.safe_dump(values))
    (tmp_path / "a.txt").write_text("Think.")
    for options in (["--ask"], ["--sample", "5"], ["--compare", str(tmp_path / "a.txt"), str(tmp_path / "a.txt")]):
        assert main(["prompt", str(config), *options]) == 3
        said = capsys.readouterr()
        assert "rows got no answer (engine_error; the first: SystemExit: " in said.err and "no sure difference" not in said.out


def test_a_file_that_lacks_instructions_is_found_before_anything_is_asked(tmp_path: Path, config: Path, chat: chat_server.ChatServer) -> None:
    (tmp_path / "a.txt").write_text("Think.")
    (tmp_path / "b.txt").write_text(" \n")
    assert main(["prompt", str(config), "--compare", str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]) == 2
    assert not chat.requests


def test_a_terminal_obeys_nobodys_text(config: Path, chat: chat_server.ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    chat.reply = lambda messages: "\x1b[31mred\nAnswer: \x1b[2Jgone"
    assert main(["prompt", str(config), "--ask"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\\x1b[31mred" in shown and "\\x1b[2Jgone" in shown
