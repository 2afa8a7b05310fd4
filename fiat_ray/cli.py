"""``fiat-ray``: arguments only. Each command calls a public function; errors become one line and an exit code."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from fiat_ray.errors import Unfinished, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 bad input, 3 rows or trials missing, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # rows may hold what no terminal takes
    try:
        parsed = _parsed(arguments)
        parsed.command(parsed)
        return 0
    except UserError as error:
        return _failed(error, 2)
    except Unfinished as error:
        return _failed(error, 3)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a file or folder of the user's that can't be read or written
        return _failed(error, 2 if error.filename else 1)
    except KeyboardInterrupt:
        return _interrupted()


def _failed(error: Exception, code: int) -> int:
    """One line, whatever stands in a file's name; and a terminal would obey control characters."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", str(error))
    print("fiat-ray:", text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    return code


def _interrupted() -> int:
    """Leave at once: threads that wait for Ray would keep the process alive. A local Ray that was started here ends with its driver."""
    print("\nfiat-ray: interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(130)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and ends its help with an example that stays on one line too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


EXAMPLES = {
    "run": "run mytask/config.yaml --out runs/mytask limit.train=100 seeds=[0,1,2]",
    "reason": "reason mytask/config.yaml --out runs/mytask",
    "tune": "tune mytask/config.yaml --out runs/mytask",
    "evaluate": "evaluate mytask/config.yaml --out runs/mytask",
    "plan": "plan mytask/config.yaml limit.train=100",
    "prompt": "prompt mytask/config.yaml --for tunable --recipe no_cot --row 12",
    "report": "report runs/mytask",
    "score": "score --task xtreme_up_qa predictions.jsonl",
    "infer": "infer runs/mytask --input rows.jsonl --output answers.jsonl",
    "data": "data fetch xor_attriqa ../data",
    "data fetch": "data fetch xor_attriqa ../data",
    "data validate": "data validate xor_attriqa --data ../data/xor_attriqa.zip",
    "ui": "ui --port 5001",
    "doctor": "doctor",
}


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parsed, rest = _parser().parse_known_args(arguments)
    # Overrides may stand behind options too, which argparse does not take for the positionals they are.
    if any("=" not in text or text.startswith("-") or not hasattr(parsed, "override") for text in rest):
        parsed.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.override = [*parsed.override, *rest]
    return parsed


def _parser() -> argparse.ArgumentParser:
    about = "FIAT: reason with a big model, tune a small one on rows plus reasoning."
    parser = _Parser(prog="fiat-ray", description=about, epilog="example: fiat-ray run demo")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str, *, config: bool = False) -> argparse.ArgumentParser:
        added = _add(commands, name, text)
        added.set_defaults(command=function, parser=added)
        if config:
            added.add_argument("config", metavar="CONFIG", help="a YAML file, the name of a built-in config (demo), or a run directory")
        return added

    for name, text in (
        ("run", "carry out a campaign; run again to resume"),
        ("reason", "only generate rationales and seal the augmented set"),
        ("tune", "only tune what is not tuned yet"),
        ("evaluate", "only predict and score what is tuned"),
    ):
        added = command(name, _run, text, config=True)
        added.add_argument("--out", help="run directory (default: runs/<name of the config>)")
        added.add_argument("override", nargs="*", default=[], metavar="key=value", help="changes to the config, such as limit.train=100")
        added.set_defaults(stage=name)
    added = command("plan", _plan, "rows, tokens, what gets cut, time, disk and cost; starts nothing", config=True)
    added.add_argument("--out", help="run directory that is there or will be (default: runs/<name of the config>)")
    added.add_argument("--sample", action="store_true", help="measure the reasoner here, about 20 s on real prompts; what it answers is kept")
    added.add_argument("override", nargs="*", default=[], metavar="key=value")
    added = command("prompt", _prompt, "a row's exact prompt: pieces, tokens, loss mask, cuts", config=True)
    added.add_argument("override", nargs="*", default=[], metavar="key=value")
    added.add_argument("--for", dest="role", choices=("reasoner", "tunable"), default="reasoner")
    added.add_argument("--row", type=int, default=0, help="which row, counted from 0 over all splits")
    added.add_argument("--recipe", default="fiat", help="method whose recipe the tunable's prompt follows (default: fiat)")
    added = command("report", _report, "build a run's report anew, and send to MLflow what is missing there")
    added.add_argument("run", metavar="RUN")
    added = command("score", _score, "score any predictions: one JSON object on standard output")
    added.add_argument("file", type=Path, metavar="FILE.jsonl")
    added.add_argument("--task", help="whose labels and averages apply")
    added = command("infer", _infer, "Algorithm 2 on new rows")
    added.add_argument("run", metavar="RUN")
    added.add_argument("--trial", help="name of a trial, or its beginning (default: FIAT's best on validation)")
    added.add_argument("--input", type=Path, required=True, help="rows: .jsonl, .csv or .parquet")
    added.add_argument("--output", type=Path, required=True, help="where the rows go with predictions added (.jsonl)")
    added = command("ui", _ui, "MLflow's pages on this folder's runs")
    added.add_argument("--port", type=int, default=5000)
    added.add_argument("--tracking-uri", help="default: ./mlruns/mlflow.db")
    command("doctor", _doctor, "is this machine or cluster fit")
    _data_commands(commands)
    return parser


def _add(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name.rpartition(" ")[2], help=text, description=text, epilog=f"example: fiat-ray {EXAMPLES[name]}"
    )
    return added


def _data_commands(commands: Any) -> None:
    text = "fetch the official archives of the paper's tasks; check a task's rows"
    data = _add(commands, "data", text).add_subparsers(required=True, metavar="fetch|validate")
    text = "download a task's official archive, resumed and verified"
    added = _add(data, "data fetch", text)
    added.set_defaults(command=_data_fetch, parser=added)
    added.add_argument("task", metavar="TASK", help="xor_attriqa or xtreme_up_qa")
    added.add_argument("folder", type=Path, metavar="DIR", help="where the archive goes")
    added.add_argument("--url", help="a mirror of the archive")
    added.add_argument("--sha256", help="what the archive must have (default: as at its first fetch)")
    text = "count a task's rows; find what is twice, empty, or in two splits, with file and row number"
    added = _add(data, "data validate", text)
    added.set_defaults(command=_data_validate, parser=added)
    added.add_argument("task", metavar="TASK|FOLDER", help="a built-in task's name, or a task folder")
    added.add_argument("--data", help="folder or archive that holds the rows (default: the task folder)")
    added.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _data_fetch(parsed: argparse.Namespace) -> None:
    from fiat_ray.data_fetch import fetch

    fetched = fetch(parsed.task, parsed.folder, url=parsed.url, sha256=parsed.sha256)
    print(f"{fetched.path}\nsha256 {fetched.sha256}, {fetched.checked}")
    print(f"\nNext:\n  {_tool()} data validate {parsed.task} --data {fetched.path}")


def _data_validate(parsed: argparse.Namespace) -> None:
    from fiat_ray import data_validate

    found = data_validate.validate(parsed.task, parsed.data)
    print(json.dumps(found, ensure_ascii=False) if parsed.json else data_validate.describe(found))
    if found["unfit"]:
        raise UserError(found["unfit"])


def _run(parsed: argparse.Namespace) -> None:
    from fiat_ray import config, runs
    from fiat_ray.report import estimates
    from fiat_ray.report.tables import console_table
    from fiat_ray.schedule import STAGES

    overrides = list(parsed.override)
    stages = STAGES if parsed.stage == "run" else (parsed.stage,)
    out = _default_out(parsed.config) if parsed.out is None else parsed.out
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not Path(out).is_absolute():
        raise UserError(f"--out {out}: a submitted job runs in a folder that is deleted; give an absolute path that all nodes share")
    command = " ".join(["fiat-ray", parsed.stage, parsed.config, *overrides])
    with _config_named(parsed):
        done, outcome = runs.run_config(config.load(parsed.config, overrides), out, stages=stages, command=command)
    if parsed.stage == "run":
        print(console_table(done.path))
        print(estimates.console_table(done.path))
        print(f"\nNext:\n  {_tool()} ui")
        print(f"  {_tool()} infer {_shown(done.path)} --input rows.jsonl --output answers.jsonl")
        print(f"  xdg-open {_shown(done.path)}/report/index.html")
    if outcome.stopped or outcome.broken_off or outcome.failed or outcome.engine_errors:
        parts = [f"{outcome.stopped}; with a higher limit the same command goes on"] if outcome.stopped else []
        parts += [*outcome.broken_off, *(f"trial {name}: {error.splitlines()[0]}" for name, error in outcome.failed.items())]
        if outcome.engine_errors:
            parts.append(f"{len(outcome.engine_errors)} rows without a rationale (engine_error): {', '.join(outcome.engine_errors[:10])}")
        raise Unfinished(f"{done.path}: finished, but not all of it: " + "; ".join(parts))


@contextmanager
def _config_named(parsed: argparse.Namespace) -> Iterator[None]:
    """Whatever is wrong with what a config asks for, the message names the config's file too."""
    from fiat_ray import config

    try:
        yield
    except (UserError, PermissionError) as error:
        path, said = str(config.find(parsed.config)), str(error)
        raise UserError(said if path in said else f"{path}: {said}") from None


def _default_out(config: str) -> Path:
    path = Path(config)
    return path if (path / "config.yaml").is_file() and (path / "manifest.json").is_file() else Path("runs") / (path.stem or "run")


def _shown(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _tool() -> str:
    """This command as it can be pasted."""
    return _shown(Path(sys.argv[0])) if "/" in sys.argv[0] else "fiat-ray"


def _plan(parsed: argparse.Namespace) -> None:
    from fiat_ray import config, plan_text, planning
    from fiat_ray.report import estimates

    with _config_named(parsed):
        loaded = config.load(parsed.config, parsed.override)
        out = _default_out(parsed.config) if parsed.out is None else parsed.out
        print(plan_text.describe(planning.plan(loaded, run=out, sample=parsed.sample)))
    if (Path(out) / "plan.json").is_file():
        print(f"\n{estimates.console_table(out)}")


def _prompt(parsed: argparse.Namespace) -> None:
    from fiat_ray import config, prompts

    with _config_named(parsed):
        loaded = config.load(parsed.config, parsed.override)
        run, color = _default_out(parsed.config), sys.stdout.isatty()
        print(prompts.show(loaded, role=parsed.role, row=parsed.row, method=parsed.recipe, color=color, run=run))


def _report(parsed: argparse.Namespace) -> None:
    from fiat_ray import config, runs, tracking
    from fiat_ray.report import page
    from fiat_ray.report.tables import console_table

    run = runs.open_run(parsed.run)
    loaded = config.load(run.path)
    print(page.build(run.path))
    tracking.track(run.path, loaded.tracking_uri)
    print(console_table(run.path))


def _score(parsed: argparse.Namespace) -> None:
    from fiat_ray.scoring import score_file

    print(json.dumps(score_file(parsed.task, parsed.file), ensure_ascii=False))


def _infer(parsed: argparse.Namespace) -> None:
    from fiat_ray import artifact, infer, runs
    from fiat_ray.rows import placed_rows
    from fiat_ray.run_folder import make

    run, rows = runs.open_run(parsed.run), placed_rows(parsed.input)
    if not rows:
        raise UserError(f"{parsed.input}: no rows")
    if parsed.output.is_dir() or parsed.output.resolve() == parsed.input.resolve():
        raise UserError(f"--output {parsed.output}: is {'a folder' if parsed.output.is_dir() else 'the input'}; give another file")
    make(parsed.output.resolve().parent, "a file")
    answers = infer.infer_rows(run, rows, parsed.trial)
    artifact.write_text(parsed.output, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in answers))
    print(f"{len(answers)} rows with predictions: {parsed.output}")
    lost = [number for number, row in enumerate(answers, 1) if row.get("status") == "engine_error"]
    if lost:
        raise Unfinished(f"{parsed.output}: {len(lost)} rows were answered without their rationale (engine_error): {', '.join(map(str, lost[:10]))}")


def _ui(parsed: argparse.Namespace) -> None:
    from fiat_ray import tracking

    raise SystemExit(tracking.ui(parsed.tracking_uri, port=parsed.port))


def _doctor(parsed: argparse.Namespace) -> None:
    from fiat_ray import doctor

    failed = doctor.check()
    if failed:
        raise SystemExit(1)
