"""The prompt lab: the reasoner answers while somebody writes its prompt, and two prompts are compared."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import chat_server
import pytest
import yaml
from test_cli import own_task, refused

from fiat_ray import config as configs
from fiat_ray import prepare, prompt_lab
from fiat_ray.campaign import with_reasoner
from fiat_ray.cli import main
from fiat_ray.errors import UserError
from fiat_ray.run_folder import RunFolder
from fiat_ray.significance import NO_SPREAD

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


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input that is a terminal, where ``--ask`` watches until somebody interrupts it, which is at once."""

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(prompt_lab, "time", SimpleNamespace(sleep=interrupt))


def careful(messages: list[dict[str, str]]) -> str:
    """Right where the instructions ask for care."""
    question = messages[-1]["content"].split("question: ")[-1].split(" context:")[0]
    return f"It asks for {question}.\nAnswer: {question if 'carefully' in messages[0]['content'] else 'nothing'}"


def test_a_row_is_answered_beside_its_gold(config: Path, chat: chat_server.ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompt", str(config), "--ask", "--row", str(TOWNS)]) == 0
    shown = capsys.readouterr().out
    assert f"mytask, row {TOWNS}: validation, language" in shown and "about validation" in shown
    assert "  answer     yes" in shown and "  gold       validation" in shown and "· F1 0" in shown
    assert len(chat.requests) == 1


def test_a_sample_is_scored_on_validation(config: Path, chat: chat_server.ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    chat.reply = careful
    assert main(["prompt", str(config), "--sample", "10"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("  gold ") == 10 and "mean       10 validation rows: F1 0.0, Exact match 0.0, Unparsed % 0.0" in shown
    assert len(chat.requests) == 10 and all("test" not in request["messages"][-1]["content"] for request in chat.requests)


def test_rows_of_a_sample_are_shown_as_a_row_that_is_asked_about(
    tmp_path: Path, config: Path, chat: chat_server.ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the number that ``--row`` takes, with the beginning of their input and all of the rationale."""
    chat.reply = careful
    rows = [{"question": f"town {at}?", "context": "river " * 200, "target": "no", "language": "en"} for at in range(TOWNS)]
    (tmp_path / "mytask" / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["prompt", str(config), "--sample", "3"]) == 0
    shown = capsys.readouterr().out
    numbers = re.findall(r"^mytask, row (\d+): validation, ", shown, re.MULTILINE)
    assert len(numbers) == 3 and shown.count("\n  rationale  It asks for town ") == 3 and shown.count("…") == 3
    assert shown.count("\n  input      question: town ") == 3 and 3 * 20 < shown.count("river") < 3 * 80
    for number in numbers:
        assert main(["prompt", str(config), "--ask", "--row", number]) == 0
        assert capsys.readouterr().out in shown
        assert main(["prompt", str(config), "--row", number]) == 0
        assert capsys.readouterr().out.split(", target")[0] in shown


def test_one_prompt_is_better_than_another(tmp_path: Path, config: Path, chat: chat_server.ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    chat.reply = careful
    (tmp_path / "a.txt").write_text("Think.")
    (tmp_path / "b.txt").write_text("Think carefully.")
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert main(["prompt", str(config), "--compare", *files]) == 0
    shown = " ".join(capsys.readouterr().out.split())  # however its lines are wrapped
    assert f"B less A on {TOWNS} validation rows: +100.0, {NO_SPREAD}" in shown and shown.endswith("the difference is real")
    assert len(chat.requests) == 2 * TOWNS
    assert main(["prompt", str(config), "--compare", files[0], files[0], "--sample", "12"]) == 0
    assert "12 validation rows: +0.0" in capsys.readouterr().out and len(chat.requests) == 2 * TOWNS + 12, "one prompt is asked once"


def test_labels_are_right_or_wrong(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = tmp_path / "mytask"
    (task / "task.yaml").write_text((task / "task.yaml").read_text() + "labels: ['no', 'yes']\n")
    (task / "exemplars.jsonl").write_text((task / "exemplars.jsonl").read_text().replace('"target": "t"', '"target": "no"'))
    for split in ("train", "validation", "test"):
        rows = [{"question": f"{split} {at}", "context": "c", "target": ("no", "yes")[at % 2], "language": "en"} for at in range(4)]
        (task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["prompt", str(config), "--sample", "4"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("  gold       yes · right\n") == shown.count("  gold       no · wrong\n") == 2 and "F1" not in shown


class Saving:
    """Somebody who reads what is shown, saves the next content of a file at each wait for one, and interrupts when there are no more."""

    def __init__(self, file: Path, *contents: str) -> None:
        self.file, self.contents = file, iter(contents)
        self.shown: list[str] = []

    def __call__(self, text: str) -> None:
        self.shown.append(text)
        if text.startswith("waiting"):
            if (content := next(self.contents, None)) is None:
                raise KeyboardInterrupt
            self.file.write_text(content)


def test_a_saved_file_is_asked_about_again(tmp_path: Path, config: Path, chat: chat_server.ChatServer) -> None:
    show = Saving(tmp_path / "mytask" / "i_beta.txt", "", "Think twice.", "Think twice.")
    with pytest.raises(SystemExit):
        prompt_lab.watch(configs.load(config), once=False, show=show)
    assert sum("is empty; it holds the instructions" in text for text in show.shown) == 1
    assert [request["messages"][0]["content"].split("\n")[0] for request in chat.requests] == ["Think.", "Think twice."]
    assert sum(text.startswith("  gold") for text in show.shown) == 3


def test_a_script_that_is_saved_is_asked_anew(tmp_path: Path, config: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("def reason(row): return 'Answer: a'")
    values = yaml.safe_load(config.read_text()) | {"reasoner": {"kind": "scripted", "script": str(script)}}
    config.write_text(yaml.safe_dump(values))
    show = Saving(script, "def reason(row): return 'Answer: b'", "def reason(", "def reason(row): return 'Answer: c'")
    with pytest.raises(SystemExit):
        prompt_lab.watch(configs.load(config), once=False, show=show)
    assert [text.split()[-1] for text in show.shown if text.startswith("  answer")] == ["a", "b", "c"]
    assert sum("SyntaxError when loaded" in text for text in show.shown) == 1


def test_of_what_libraries_say_only_errors_are_heard(
    tmp_path: Path, config: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    chatter = "logging.warning('no GPU'); warnings.warn('will change', FutureWarning); logging.error('no memory')"
    (tmp_path / "script.py").write_text(f"import logging, warnings\ndef reason(row):\n    {chatter}\n    return 'Answer: a'\n")
    values = yaml.safe_load(config.read_text()) | {"reasoner": {"kind": "scripted", "script": str(tmp_path / "script.py")}}
    config.write_text(yaml.safe_dump(values))
    assert main(["prompt", str(config), "--sample", "1"]) == 0
    assert caplog.messages == ["no memory"] and not [warning for warning in recwarn if "will change" in str(warning.message)]
    logging.warning("heard again")
    assert caplog.messages[1:] == ["heard again"]


def test_what_is_wrong_from_the_start_is_not_awaited(tmp_path: Path, config: Path) -> None:
    show = Saving(tmp_path / "mytask" / "i_beta.txt")
    with pytest.raises(UserError, match="row 999: there is none"):
        prompt_lab.watch(configs.load(config), 999, once=False, show=show)
    assert not show.shown


def test_a_terminal_obeys_no_error(tmp_path: Path, config: Path) -> None:
    show = Saving(tmp_path / "mytask" / "exemplars.jsonl", '{"\\u001b[2J": 1}')
    with pytest.raises(SystemExit):
        prompt_lab.watch(configs.load(config), once=False, show=show)
    assert "\x1b" not in "".join(show.shown) and any("exemplars.jsonl" in text and "\\x1b[2J" in text for text in show.shown)


def test_a_file_that_goes_away_while_it_is_looked_at_is_only_missing(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mytask" / ".#i_beta.txt").symlink_to("somebody@somewhere.1")
    loaded, here, stat = configs.load(config), tmp_path / "mytask" / "i_beta.txt", Path.stat
    (tmp_path / "mytask" / "config.yaml").write_text("is read once")
    before = prompt_lab._stamps(loaded)
    own = {"task.yaml", "i_beta.txt", "i_tau.txt", "exemplars.jsonl", "train.jsonl", "validation.jsonl", "test.jsonl"}
    assert {Path(path).name for path in before} == own

    def renamed(path: Path, **options: bool) -> object:
        if path == here:
            raise FileNotFoundError(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", renamed)
    assert prompt_lab._stamps(loaded).keys() == before.keys() - {str(here)}


@pytest.mark.usefixtures("terminal")
def test_an_interruption_promises_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prompt", str(config), "--ask"])
    said = capsys.readouterr()
    assert ended.value.code == 130 and "waiting for a file of the task to be saved" in said.out
    assert "interrupted; the lab keeps no answers" in said.err and "goes on" not in said.err


@pytest.mark.usefixtures("terminal")
def test_a_runs_prompts_are_asked_about_once(tmp_path: Path, config: Path, chat: chat_server.ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = with_reasoner(configs.load(config))
    prepared, run = prepare.prepare(loaded), RunFolder(tmp_path / "run")
    run.save_task(prepared.tasks["mytask"], prepared.lengths["mytask"], prepare.drawn(loaded)[0])
    run.config.write_text(configs.dump(loaded))
    run.manifest.write_text(json.dumps({"tasks": {"mytask": {}}, "trials": [], "models": {}}))
    (tmp_path / "mytask" / "i_beta.txt").write_text("Written after the run.")
    assert main(["prompt", str(run.path), "--ask"]) == 0
    shown = capsys.readouterr().out
    assert "asked once: a run's prompts are a record" in shown and "waiting" not in shown and "· F1 0" in shown
    assert [request["messages"][0]["content"].split("\n")[0] for request in chat.requests] == ["Think."]


def test_refused(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "row 999: there is none" in refused(capsys, "prompt", str(config), "--ask", "--row", "999")
    (tmp_path / "a.txt").write_text("Think.")
    files = [str(tmp_path / "a.txt"), str(tmp_path / "a.txt")]
    for options, said in (
        (["--ask", "--for", "tunable"], "--ask, --sample and --compare: it is the reasoner that is asked"),
        (["--compare", "nowhere.txt", "neither.txt"], "nowhere.txt: no such file; it holds the instructions"),
        (["--sample", "0"], "argument --sample: '0' is no whole number above 0"),
        (["--ask", "--compare", *files], "argument --compare: not allowed with argument --ask"),
        (["--sample", "5", "--row", "3"], "--row: --sample and --compare ask about validation rows"),
        (["--compare", *files, "--row", "3"], "--row: --sample and --compare ask about validation rows"),
    ):
        assert refused(capsys, "prompt", str(config), *options).startswith(f"fiat-ray: {said}")


def test_rows_without_an_answer_are_no_result(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raises = "if row['split'] == 'train' or row['language'] == 'fi':\n        raise SystemExit(row['split'])"
    (tmp_path / "broken.py").write_text(f"def reason(row):\n    {raises}\n    return 'Answer: x'\n")
    values = yaml.safe_load(config.read_text()) | {"reasoner": {"kind": "scripted", "script": str(tmp_path / "broken.py")}}
    config.write_text(yaml.safe_dump(values))
    (tmp_path / "a.txt").write_text("Think.")
    for options, shows in ((["--ask"], 0), (["--sample", "6"], 3), (["--compare", str(tmp_path / "a.txt"), str(tmp_path / "a.txt")], 0)):
        assert main(["prompt", str(config), *options]) == 3
        said = capsys.readouterr()
        assert "rows got no answer (engine_error; the first: SystemExit: " in said.err and "no sure difference" not in said.out
        assert said.out.count("· F1") == said.out.count("  answer ") == shows, "a row without an answer has no score"
        assert ("no score: 3 of 6 validation rows got no answer" in said.out) == ("--sample" in options) and "validation rows: F1" not in said.out


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
