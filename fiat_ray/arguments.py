"""What ``fiat-ray`` takes on its command line: each command with its options, and an example."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from fiat_ray.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and ends its help with an example that stays on one line too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


EXAMPLES = {
    "init": "init mytask --train rows.csv",
    "run": "run mytask/config.yaml --out runs/mytask limit.train=100 seeds=[0,1,2]",
    "reason": "reason mytask/config.yaml --out runs/mytask",
    "tune": "tune mytask/config.yaml --out runs/mytask",
    "evaluate": "evaluate mytask/config.yaml --out runs/mytask",
    "plan": "plan mytask/config.yaml limit.train=100",
    "prompt": "prompt mytask/config.yaml --for tunable --recipe no_cot --row 12",
    "report": "report runs/mytask",
    "diff": "diff runs/before runs/after",
    "score": "score --task xtreme_up_qa predictions.jsonl",
    "infer": "infer runs/mytask --input rows.jsonl --output answers.jsonl",
    "export": "export runs/mytask exported",
    "data": "data fetch xor_attriqa ../data",
    "data fetch": "data fetch xor_attriqa ../data",
    "data validate": "data validate xor_attriqa --data ../data/xor_attriqa.zip",
    "ui": "ui --port 5001",
    "doctor": "doctor",
    "completion": "completion bash",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed, rest = build().parse_known_args(given)
    parsed.given = given
    # Overrides may stand behind options too, which argparse does not take for the positionals they are.
    if any("=" not in text or text.startswith("-") or not hasattr(parsed, "override") for text in rest):
        parsed.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.override = [*parsed.override, *rest]
    if parsed.command == "prompt":
        _check_prompt(parsed)
    return parsed


def build() -> argparse.ArgumentParser:
    about = "FIAT: reason with a big model, tune a small one on rows plus reasoning."
    parser = _Parser(prog="fiat-ray", description=about, epilog="example: fiat-ray run demo")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, text: str, *, config: bool = False) -> argparse.ArgumentParser:
        added = _add(commands, name, text)
        if config:
            added.add_argument("config", metavar="CONFIG", help="a YAML file, the name of a built-in config (demo), or a run directory")
        return added

    _init_options(command("init", "a task folder and a config from labelled rows"))
    for name, text in (
        ("run", "carry out a campaign; run again to resume"),
        ("reason", "only generate rationales and seal the augmented set"),
        ("tune", "only tune what is not tuned yet"),
        ("evaluate", "only predict and score what is tuned"),
    ):
        added = command(name, text, config=True)
        added.add_argument("--out", help="run directory (default: runs/<name of the config, or of its folder where it is called config.yaml>)")
        _log_option(added)
        _override(added)
    added = command("plan", "rows, tokens, what gets cut, time, disk and cost; starts nothing", config=True)
    added.add_argument("--out", help="run directory that is there or will be (default: as `run`)")
    added.add_argument("--sample", action="store_true", help="measure the reasoner here, about 20 s on real prompts; what it answers is kept")
    _override(added)
    _prompt_options(command("prompt", "a row's exact prompt: pieces, tokens, loss mask, cuts", config=True))
    added = command("report", "build a run's report anew, and send to MLflow what is missing there")
    added.add_argument("run", metavar="RUN")
    added = command("diff", "two runs side by side: what differs, what is the same to the byte, and whether it matters")
    added.add_argument("a", metavar="A", help="a run directory")
    added.add_argument("b", metavar="B", help="another")
    added.add_argument("--json", action="store_true", help="one JSON object instead of text")
    added = command("score", "score any predictions: one JSON object on standard output")
    added.add_argument("file", type=Path, metavar="FILE.jsonl")
    added.add_argument("--task", help="whose labels and averages apply")
    added = command("infer", "answers to new rows: the reasoner reasons, the tuned model answers (the paper's Algorithm 2)")
    added.add_argument("run", metavar="RUN")
    added.add_argument("--trial", help="name of a trial, or its beginning (default: FIAT's best on validation)")
    added.add_argument("--input", type=Path, required=True, help="rows: .jsonl or .parquet of any size, or .csv")
    text = "where the rows go with predictions added (.jsonl or .parquet), there when all are done; killed before, the same command goes on"
    added.add_argument("--output", type=Path, required=True, help=text)
    _log_option(added)
    added = command("export", "a tuned trial for other tools: merged model, adapter, model card")
    added.add_argument("run", metavar="RUN")
    added.add_argument("folder", metavar="DIR", help="where they go: a new folder")
    added.add_argument("--trial", help="name of a trial, or its beginning (default: FIAT's best on validation)")
    added = command("ui", "MLflow's pages on this folder's runs")
    added.add_argument("--port", type=int, default=5000)
    added.add_argument("--tracking-uri", help="default: ./mlruns/mlflow.db")
    command("doctor", "is this machine or cluster fit")
    added = command("completion", "a script that makes a shell complete commands and options")
    added.add_argument("shell", choices=("bash", "zsh"))
    _data_commands(commands)
    return parser


def _override(added: argparse.ArgumentParser) -> None:
    text = "changes to the config for this command, such as limit.train=100; keys are in docs/config.md"
    added.add_argument("override", nargs="*", default=[], metavar="key=value", help=text)


def _log_option(added: argparse.ArgumentParser) -> None:
    text = "progress and errors, on standard error, as a JSON object a line: time, stage, message, counts"
    added.add_argument("--json", action="store_true", dest="json_log", help=text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _add(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name.rpartition(" ")[2], help=text, description=text, epilog=f"example: fiat-ray {EXAMPLES[name]}"
    )
    added.set_defaults(command=name, parser=added)
    return added


def _init_options(added: argparse.ArgumentParser) -> None:
    def texts(text: str) -> list[str]:
        return [part.strip() for part in text.split(",")]

    added.add_argument("name", metavar="NAME", help="folder to be made")
    text = "labelled rows: .jsonl, .csv or .parquet, a folder of them or one that `datasets` saved, or hf:owner/name[/config][@revision]"
    added.add_argument("--train", required=True, metavar="FILE", help=text)
    added.add_argument("--target", help="field with the answer (default: answer, answers, target, label or output)")
    added.add_argument("--language", help="field with the language (default: language or lang)")
    added.add_argument("--input", help='template of the input, such as "question: {question} context: {passage}" (default: fields with usual names)')
    added.add_argument("--labels", type=texts, help="all labels, comma-separated: a classification (default: the values of a field named label)")
    added.add_argument("--positive", help="label that AUC-PR is about (default: the last)")
    added.add_argument("--metric", help="f1, exact_match, chrf; of labels accuracy, auc_pr, macro_f1; or a function of yours, module:function")
    text = "fields that make rows dependent, comma-separated, such as a question's id (default: a passage that several share, or the input's)"
    added.add_argument("--group", type=texts, help=text)
    added.add_argument("--exemplars", type=Path, metavar="FILE", help="worked examples with `rationale` (default: drafted from train rows)")
    added.add_argument("--seed", type=int, default=0, help="of the splits (default: 0)")
    added.add_argument("--hardware", choices=("cpu", "gpu24", "gpu80", "api"), help="what models are chosen for (default: what this machine has)")


def _prompt_options(added: argparse.ArgumentParser) -> None:
    _override(added)
    added.add_argument("--for", dest="role", choices=("reasoner", "tunable"), default="reasoner", help="whose prompt (default: reasoner)")
    added.add_argument("--row", type=int, default=0, help="which row, counted from 0 over all splits")
    added.add_argument("--recipe", default="fiat", help="method whose recipe the tunable's prompt follows (default: fiat)")
    added.add_argument("--sample", type=_positive, metavar="N", help="ask about N validation rows, and score them as few-shot ICL")
    asked = added.add_mutually_exclusive_group()
    text = "start the reasoner and show what it says; on a terminal again whenever a file of the task is saved"
    asked.add_argument("--ask", action="store_true", help=text)
    text = "two files of instructions: is one better on validation rows (as many as --sample says)?"
    asked.add_argument("--compare", nargs=2, type=_instructions, metavar=("A", "B"), help=text)


def _instructions(path: str) -> str:
    """What a file holds, read here because what is wrong with it has nothing to do with the config."""
    from fiat_ray.task_folder import text_file

    return text_file(Path(path))


def _check_prompt(parsed: argparse.Namespace) -> None:
    if parsed.role != "reasoner" and (parsed.ask or parsed.sample or parsed.compare):
        parsed.parser.error("--ask, --sample and --compare: it is the reasoner that is asked; a tunable is scored by tuning it")
    if parsed.row and (parsed.sample or parsed.compare):
        parsed.parser.error("--row: --sample and --compare ask about validation rows that they draw; leave it out")


def _data_commands(commands: Any) -> None:
    text = "fetch the official archives of the paper's tasks; check a task's rows"
    data = _add(commands, "data", text).add_subparsers(required=True, metavar="fetch|validate")
    text = "download a task's official archive, resumed and verified"
    added = _add(data, "data fetch", text)
    added.add_argument("task", metavar="TASK", help="xor_attriqa or xtreme_up_qa")
    added.add_argument("folder", type=Path, metavar="DIR", help="where the archive goes")
    added.add_argument("--url", help="a mirror of the archive")
    added.add_argument("--sha256", help="what the archive must have (default: as at its first fetch)")
    text = "count a task's rows; find what is twice, empty, or in two splits, with file and row number"
    added = _add(data, "data validate", text)
    added.add_argument("task", metavar="TASK|FOLDER", help="a built-in task's name, or a task folder")
    added.add_argument("--data", help="folder or archive that holds the rows (default: the task folder)")
    added.add_argument("--json", action="store_true", help="one JSON object instead of text")
