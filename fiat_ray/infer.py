"""Algorithm 2 on new rows: the run's reasoner reasons, the trial's tuned model answers.

Rows go through in pieces, so that no process holds them all. First every row is measured; then the reasoner is asked, once for all of them, and its
rationales go into the run's store; then the tuned model answers, a piece after the other. What is done lies in a folder, and is not done again.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from fiat_ray import artifact, campaign, cluster
from fiat_ray import config as configs
from fiat_ray.augmented import Example
from fiat_ray.config import Config
from fiat_ray.errors import Unfinished, UserError
from fiat_ray.length import Budget, alike
from fiat_ray.models import Model, find, resolve
from fiat_ray.output import SUFFIXES, columns, writing
from fiat_ray.prepare import make_reasoner, make_renderer, max_length, reasoner_budget, requests_of
from fiat_ray.progress import Console, Work
from fiat_ray.reason.merge import merge
from fiat_ray.reason.requests import Requests, joined
from fiat_ray.reason.stage import reason
from fiat_ray.reason.store import Store
from fiat_ray.reason.watch import Watch
from fiat_ray.reason.watchdog import patience_for
from fiat_ray.recipe import Recipe
from fiat_ray.rows import Place, read_rows, text_field
from fiat_ray.run_folder import locked, make
from fiat_ray.runs import Run
from fiat_ray.schedule.reasoning import window_of
from fiat_ray.schema import INFERRED, MEASURED, VERSION
from fiat_ray.task import Row, Task, digest, row_language, template_fields
from fiat_ray.text import count

PIECE = 2048
"""Rows that are measured, answered and written together: what a kill makes the tuned model do again."""

Rows = Iterable[tuple[Place, dict[str, Any]]]


@dataclass(frozen=True)
class Inferred:
    rows: int
    lost: list[int]
    """Numbers, from 1, of rows that were answered without their rationale, because the reasoner's engine failed on them."""


def infer_rows(run: Run, rows: Rows, trial: str | None = None) -> list[dict[str, Any]]:
    """Each row with ``prediction`` (and ``score``, see ``predict.Prediction``; ``rationale`` and its ``status`` with CoT) added, in order.

    What it had under these names is left out. Rationales go into the run's own store, so a second call generates nothing twice.
    Raises ``UserError`` for a row without a field of the task, or one that does not fit.
    """
    rows = list(rows)
    with tempfile.TemporaryDirectory(prefix="fiat-infer-") as folder:
        answers = _Job(run, trial, Path(folder), Console()).answers(rows)
        return [_answered(raw, answer) for (_, raw), answer in zip(rows, answers, strict=True)]


def infer_file(run: Run, source: Path, output: Path, trial: str | None = None, console: Console | None = None) -> Inferred:
    """``infer_rows`` on a ``.jsonl``, ``.parquet`` or ``.csv`` file of any size, into one of the first two, which is there whole or not at all.

    Until then what is done lies in a hidden folder beside it, where a second call goes on. Raises ``UserError`` before anything starts where a row
    is not as the task wants it, or the output can't be written.
    """
    console = console or Console()
    if output.is_dir() or output.resolve() == source.resolve():
        raise UserError(f"--output {output}: is {'a folder' if output.is_dir() else 'the input'}; give another file")
    make(output.resolve().parent, "a file")
    if output.suffix not in SUFFIXES:
        raise UserError(f"--output {output}: answers are written as JSON lines or Parquet; give it a name that ends in {' or '.join(SUFFIXES)}")
    if next(read_rows(source), None) is None:
        raise UserError(f"{source}: no rows")
    folder, before = output.with_name(f".{output.name}.parts"), _state(source)
    with console.working(f"infer: looking through {source} and the trial", "measure"):
        schema = columns(source, INFERRED) if output.suffix == ".parquet" else None
        job = _Job(run, trial, folder, console)
    if output.exists() and not folder.exists():
        console.line(f"infer: {output} is there already, and will be replaced", "measure")
    folder.mkdir(exist_ok=True)
    with locked(folder, f"{output}: another fiat-ray is at work on this output"):
        try:
            job.go_on(before)
            answers = job.answers(read_rows(source))
        except UserError:
            if not job.rows:  # nothing was started
                shutil.rmtree(folder)
            raise
        lost, answered = [], zip(read_rows(source), answers, strict=False)
        said = f"infer: writing {output}"
        with (
            artifact.replacing(folder / output.name) as temporary,
            writing(temporary, schema) as write,
            console.working(said, "write", job.rows) as work,
        ):
            for start in range(1, job.rows + 1, PIECE):
                piece = list(islice(answered, PIECE))
                write([_answered(raw, answer) for (_, raw), answer in piece])
                lost += [number for number, (_, answer) in enumerate(piece, start) if answer.get("status") == "engine_error"]
                work.done += len(piece)
        if _state(source) != before:
            raise UserError(f"{source}: was changed while its rows were answered; run the command again")
        (folder / output.name).replace(output)
        shutil.rmtree(folder)
    return Inferred(job.rows, lost)


def _state(path: Path) -> list[Any]:
    """What changes when a file does, without reading it."""
    return [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]


class _Job:
    """One trial asked about some rows. Its folder holds, of each piece, the rows as measured and the answers; and what the reasoner is asked."""

    def __init__(self, run: Run, trial: str | None, folder: Path, console: Console) -> None:
        self._run, self._folder, self._console = run, folder, console
        self._record = run.best_trial(trial)
        if trial is None and (leading := run.leading_trial()) and leading["name"] != self._record["name"]:
            said = f"infer: {self._record['name']} answers, the best of FIAT; on validation {leading['name']} leads: --trial {leading['name']}"
            console.line(said, "measure")
        self._config = configs.load(run.path)
        self._task = run.folder.load_task(self._record["task"])
        self._spec = tuned_trial(run, self._config, self._record)
        self.rows = 0

    @property
    def _measured(self) -> Path:
        """Written when all rows are measured."""
        return self._folder / "measured.json"

    def _piece(self, kind: str, number: int) -> Path:
        return self._folder / f"{kind}-{number:06}.parquet"

    def go_on(self, source: Any) -> None:
        """Empty the folder, unless it holds what was done for the same rows and the same tuning of a trial."""
        about = {"version": VERSION, "piece": PIECE, "trial": self._record, "source": source}
        found = artifact.read_json(self._folder / "job.json")
        if found != about:
            if found:
                self._console.line(f"infer: what lies in {self._folder} is of other rows or another tuning; starting over", "measure")
            for path in (path for kind in ("*.parquet", "*.json", ".*.tmp") for path in self._folder.glob(kind)):
                path.unlink()
            artifact.write_json(self._folder / "job.json", about)

    def answers(self, rows: Rows) -> Iterator[dict[str, Any]]:
        """What is added to each row, in their order. All of it is done when this returns."""
        if artifact.read_json(self._measured) is None:
            with self._console.working("infer: measuring", "measure") as work:
                self._measure(rows, work)
        found = artifact.read_json(self._measured, rows=int, prefixes=dict, reasoner_length=int)
        self.rows = found["rows"]
        self._reason(Requests(self._folder / "requests.parquet", found["prefixes"]), found["reasoner_length"])
        self._predict()
        return (_answer(row) for number in range(self._pieces) for row in artifact.read_rows(self._piece("answers", number)))

    @property
    def _pieces(self) -> int:
        return -(-self.rows // PIECE)

    def _measure(self, source: Rows, work: Work) -> None:
        """Cut new rows as the run's rows were, and write down what to ask the reasoner about them, if anything."""
        asks = self._spec.recipe.cot == "augmented"
        budgets, budget, model = self._budgets()
        # As many exemplars as in the prompts of the rationales that the tunable was tuned on.
        shown = self._run.folder.exemplars_shown(self._task.name) if asks else None
        cut = 0

        def asked() -> Iterator[Requests]:
            nonlocal cut
            for number, piece in enumerate(_in_pieces(source)):
                task = replace(self._task, rows=tuple(_row(self._task, place, raw) for place, raw in piece))
                texts, keys = dict[str, str](), dict[str, str]()
                for part, lengths in alike(task, budgets, self._config.exemplars, shown):
                    texts, cut = texts | lengths.texts, cut + lengths.cut.total()
                    if asks:
                        requests = requests_of(self._config, part, lengths, budget, model)
                        keys |= requests.keys
                        yield requests
                rows = [{"id": row.id, "language": row.language, "input": texts[row.id], "key": keys.get(row.id)} for row in task.rows]
                artifact.write_rows(self._piece("rows", number), rows, MEASURED)
                work.done += len(piece)

        requests = joined(self._folder / "requests.parquet", asked())
        length, total = budget.max_length if budget else 0, work.done
        artifact.write_json(self._measured, {"rows": total, "prefixes": requests.prefixes, "reasoner_length": length})
        prompts = count(len(requests), "distinct prompt")
        said = f"infer: {count(total, 'row')} measured, {count(cut, 'passage')} cut to fit, {prompts} for the reasoner"
        self._console.line(said, "measure", rows=total, cut=cut, prompts=len(requests))

    def _budgets(self) -> tuple[list[Budget], Budget | None, Model | None]:
        """What the run's rows had to fit in the models that are asked, the reasoner's part of it, and who that is."""
        trial, asks = self._spec, self._spec.recipe.cot == "augmented"
        budget, model = reasoner_budget(self._config) if asks else (None, None)
        if model is not None:
            _check_hash(self._run, "reasoner", model.hash)
        alone = trial.answer_tokens + 1 + (trial.rationale_tokens if asks else 0)
        reserved = self._run.folder.read_manifest().get("reserved", {}).get(trial.role, alone)  # which older runs do not tell
        renderer = make_renderer(trial.tunable, find(trial.model), trial.recipe.instruction_tuned)
        own = Budget(trial.role, renderer, trial.max_length, reserved, campaign.recipes(self._config, trial.recipe.instruction_tuned))
        return [own, *([budget] if budget else [])], budget, model

    def _reason(self, requests: Requests, length: int) -> None:
        """Ask what the run's store lacks."""
        store, config = Store(self._run.folder.rationales), self._config
        watch = Watch(self._task.name, requests, store, config.reasoner)
        if not watch.missing:
            return
        unit = self._unit()
        create = make_reasoner(replace(config, where=cluster.resolved(config.where, unit)), length)
        unit = cluster.reasoner_unit(config, unit)
        replicas = 1 if config.reasoner.is_remote else max(1, min(config.where.replicas, unit.count))
        said = f"infer: {len(requests) - watch.missing:,} of {len(requests):,} rationales are stored; starting {replicas} reasoner(s)"
        self._console.line(said, "reason", prompts=len(requests), missing=watch.missing)
        options: dict[str, Any] = {"window": window_of(config, unit), "patience": patience_for(config.reasoner.max_tokens)}
        with requests.shared(self._run.path, digest(str(self._folder.resolve()))) as shared, self._console.watching(watch, "reason"):
            deque(reason(shared, store, create, replicas=replicas, cpus=unit.cpus, gpus=unit.gpus, **options), maxlen=0)
        merge(store)

    def _predict(self) -> None:
        """Answer the pieces that are not answered yet; each engine is given the next one before it is done with the last."""
        waiting = [number for number in range(self._pieces) if not self._piece("answers", number).is_file()]
        if not waiting:
            return
        import ray

        from fiat_ray.evaluate import Evaluator, why_died

        unit = self._unit()
        actor = ray.remote(num_cpus=unit.cpus, num_gpus=unit.gpus)(Evaluator)
        who = (str(self._run.path), self._spec.model, self._spec.max_length, int(max(1, unit.gpus)))
        actors = [actor.remote(*who) for _ in range(max(1, min(self._config.where.replicas, unit.count, len(waiting))))]
        left = sum(map(self._size, waiting))
        said = f"infer: {self.rows - left:,} of {self.rows:,} rows are answered; starting {len(actors)} engine(s) for {self._record['name']}"
        self._console.line(said, "answer", rows=self.rows, missing=left)
        asked = deque[tuple[int, list[Example], Any]]()
        try:
            with self._console.working("answer", "answer", left) as work, closing(cluster.Raylet()) as raylet:
                for at, number in enumerate(waiting):
                    if len(asked) == 2 * len(actors):
                        work.done += self._write(*asked.popleft(), raylet)
                    examples = self._examples(number)
                    asked.append((number, examples, actors[at % len(actors)].infer.remote(self._spec, self._task, examples)))
                while asked:
                    work.done += self._write(*asked.popleft(), raylet)
        except cluster.actor_errors() as error:
            said = f"the engine died: {why_died(self._run.folder, error)}"
            raise Unfinished(f"{said}; what is answered is kept, and the same command goes on from there") from None
        finally:
            for one in actors:
                ray.kill(one)

    def _size(self, number: int) -> int:
        return min(PIECE, self.rows - number * PIECE)

    def _examples(self, number: int) -> list[Example]:
        rows = artifact.read_rows(self._piece("rows", number))
        said = Store(self._run.folder.rationales).read([row["key"] for row in rows if row["key"]])
        found = [said[row["key"]] if row["key"] else {} for row in rows]
        return [
            Example(row["id"], "test", row["language"], row["input"], ("",), "", of.get("text"), of.get("status"))
            for row, of in zip(rows, found, strict=True)
        ]

    def _write(self, number: int, examples: list[Example], predicted: Any, raylet: cluster.Raylet) -> int:
        rows = [
            {"prediction": p["prediction"], "score": p["score"], "rationale": e.rationale, "status": e.status}
            for e, p in zip(examples, raylet.result(predicted), strict=True)
        ]
        artifact.write_rows(self._piece("answers", number), rows, INFERRED)
        return len(rows)

    def _unit(self) -> cluster.Unit:
        return cluster.join(self._config.where, self._run.path, "the run", self._console)


def _in_pieces(rows: Rows) -> Iterator[list[tuple[Place, dict[str, Any]]]]:
    source = iter(rows)
    while piece := list(islice(source, PIECE)):
        yield piece


def _row(task: Task, place: Place, raw: dict[str, Any]) -> Row:
    fields = {name: text_field(raw, name, place) for name in template_fields(task.input)}
    return Row(digest(str(place), *fields.values()), "test", row_language(task, raw, place), fields, ("",), "", "", place)


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of ``INFERRED`` adds to the row that was asked about."""
    reasoning = {name: row[name] for name in ("rationale", "status") if row["rationale"] is not None}
    return reasoning | {name: row[name] for name in ("prediction", "score") if row[name] is not None}


def _answered(raw: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """The row and its answer. A row that was answered before keeps nothing of that: it would pass for this trial's."""
    return {name: value for name, value in raw.items() if name not in INFERRED.names} | dict(answer)


def tuned_trial(run: Run, config: Config, record: Mapping[str, Any]) -> campaign.Trial:
    """What is needed of a trial to infer with it. Raises ``UserError`` where its weights are gone, or its base model has changed."""
    if run.folder.weights(record["name"]) is None:
        kept = "`keep: best` keeps those of the best on validation; to tune this one again, delete its folder and run with keep=all"
        raise UserError(f"{run.folder.trial(record['name'])}: holds no weights; {kept}")
    recipe = Recipe(**record["recipe"])
    tunable = config.tunables[record["tunable"]]
    model = tunable.model if recipe.instruction_tuned else tunable.pretrained
    assert model is not None, "a trial of a pretrained twin has one"
    if (commit := record.get("base", {}).get("commit")) and not Path(model).is_dir():
        model = f"{model.partition('@')[0]}@{commit}"  # the name alone may mean other files by now
    key = campaign.role(record["tunable"], recipe.instruction_tuned)
    _check_hash(run, key, resolve(model).hash)
    length = max_length(key, tunable, find(model))
    who = {key: record[key] for key in ("task", "method", "tunable", "seed", "train_size", "answer_tokens", "fingerprint")}
    tuning: dict[str, Any] = {"learning_rates": (), "batch_size": 1, "epochs": 1, "steps": None, "validations": 1, "validation_rows": 1}
    return campaign.Trial(
        **who,
        **tuning,
        lora=config.lora,
        recipe=recipe,
        model=model,
        language_mix="natural",
        rationale_tokens=config.reasoner.max_tokens,
        max_length=length,
    )


def _check_hash(run: Run, role: str, found: str) -> None:
    """A tuned adapter means something on the weights it was tuned on only."""
    expected = run.folder.read_manifest()["models"][role]
    if expected["hash"] != found:
        raise UserError(f"{role}: the files of {expected['name']} have changed since this run; put back the ones it was made with")
