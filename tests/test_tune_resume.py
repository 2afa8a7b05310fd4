"""Killed with SIGKILL in the middle of an epoch, a trial goes on from its kept state to the very bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fiat_ray import artifact, runs
from fiat_ray import config as configs
from fiat_ray.campaign import Trial
from fiat_ray.prepare import prepare
from fiat_ray.progress import Console
from fiat_ray.run_folder import RunFolder
from fiat_ray.schedule.trials import tuned
from fiat_ray.tune import resume

STEPS = 10


def config(tiny: Path) -> configs.Config:
    return configs.load(
        {
            "task": "country_facts",
            "languages": ["id", "sw"],
            "limit": {"train": 12, "validation": 4, "test": 2},
            "tunables": {"xs": {"model": str(tiny), "max_length": 512}},
            "methods": ["no_cot", "no_peft"],
            "learning_rate": {"lora": [1e-2, 3e-2], "full": [1e-3, 2e-3]},
            "batch_size": 6,
            "steps": STEPS,
            "validation": {"times": 3, "rows": 4},
        }
    )


@contextmanager
def no_room() -> Iterator[None]:
    """While a state is written, the disk has no room for a DeepSpeed file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail with an OSError then
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def tune(rank: int, workers: int, meeting: Path, run: Path, trial: Trial, zero: int, killed_after: int | None, full_after: int | None = None) -> None:
    """In a process of its own: the trial, keeping its state at every step; SIGKILL after so many updates of both learning rates together, and
    where that is all of them, when the state would be deleted.

    ``full_after``: of updates, from when on the disk is full whenever a state is kept.
    """
    import torch.distributed as dist

    from fiat_ray.tune.lane import _quiet_deepspeed
    from fiat_ray.tune.trial import Shared, run_trial
    from fiat_ray.tune.tunable import DeepSpeedTunable

    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    _quiet_deepspeed()
    resume.KEEP_SECONDS, resume.MOST_SHARE = 0.0, 1e9
    update, updates = DeepSpeedTunable.update, 0

    def counted(self: DeepSpeedTunable) -> None:
        nonlocal updates
        if updates == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)
        update(self)
        updates += 1

    keep = DeepSpeedTunable.keep

    def kept(self: DeepSpeedTunable, folder: Path) -> None:
        with no_room() if full_after is not None and updates > full_after else nullcontext():
            keep(self, folder)

    forget = resume.Keeper.forget

    def forgotten(self: resume.Keeper) -> None:
        if updates == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)
        forget(self)

    DeepSpeedTunable.update, DeepSpeedTunable.keep, resume.Keeper.forget = counted, kept, forgotten  # type: ignore[method-assign]
    run_trial(trial, RunFolder(run), zero, 1.0, lambda text, *_: print(text, file=(run / "said").open("a")), Shared())
    (run / f"updates-{rank}").write_text(str(updates))


def sitting(run: Path, trial: Trial, zero: int = 0, workers: int = 1, killed_after: int | None = None, full_after: int | None = None) -> int:
    """How many updates it took; checks that it ended as it should."""
    meeting = run / f"meeting-{len(list(run.glob('meeting-*')))}"
    spawn = get_context("spawn")
    processes = [spawn.Process(target=tune, args=(rank, workers, meeting, run, trial, zero, killed_after, full_after)) for rank in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == (0 if killed_after is None else -signal.SIGKILL)
    return int((run / "updates-0").read_text()) if killed_after is None else killed_after


@pytest.fixture
def make_run(tmp_path: Path, tiny: Path) -> Iterator[Any]:
    def make(name: str) -> Path:
        runs.run_config(config(tiny), tmp_path / name, stages=("reason",), console=Console(quiet=True))
        return tmp_path / name

    yield make


def content(run: Path, trial: Trial) -> dict[str, Any]:
    """All that a trial leaves, without what a clock says."""
    folder = run / "trials" / trial.name
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    record = json.loads(files.pop("trial.json").read_text())
    history = pd.read_parquet(files.pop("history.parquet")).drop(columns="seconds").to_csv()
    return {name: path.read_bytes() for name, path in files.items()} | {"history": history, "trial": record | {"seconds": None}}


def trial_of(tiny: Path, method: str) -> Trial:
    [found] = [trial for trial in prepare(config(tiny)).trials if trial.method == method]
    return found


@pytest.mark.parametrize(
    ("method", "workers", "zero"),
    [
        ("no_cot", 1, 0),
        pytest.param("no_peft", 1, 0, marks=pytest.mark.slow),
        *(pytest.param(method, 2, zero, marks=pytest.mark.slow) for method in ("no_cot", "no_peft") for zero in (2, 3)),
    ],
)
@pytest.mark.timeout(600)
def test_killed_in_mid_epoch_with_each_learning_rate(make_run: Any, tiny: Path, method: str, workers: int, zero: int) -> None:
    trial, run, undisturbed = trial_of(tiny, method), make_run("broken"), make_run("undisturbed")
    assert sitting(undisturbed, trial, zero, workers) == 2 * STEPS

    sitting(run, trial, zero, workers, killed_after=3)
    sitting(run, trial, zero, workers, killed_after=STEPS)
    for name in ("scores.json", "evaluation.json", "predictions.parquet"):
        (run / "trials" / trial.name / name).write_text("of weights that were there before")
    assert sitting(run, trial, zero, workers) == 2 * STEPS - (3 + STEPS)
    assert [line for line in (run / "said").read_text().splitlines() if "goes on" in line] == [f"goes on after step 3/{STEPS}"] * workers * 2
    assert content(run, trial) == content(undisturbed, trial)
    assert not list(run.rglob("resume*"))


@pytest.mark.timeout(300)
def test_a_disk_that_is_full_costs_the_state_and_not_the_trial(make_run: Any, tiny: Path) -> None:
    """What was kept before stays, and is gone on from."""
    trial, run, undisturbed = trial_of(tiny, "no_cot"), make_run("full"), make_run("undisturbed")
    assert sitting(undisturbed, trial) == 2 * STEPS
    sitting(run, trial, killed_after=7, full_after=3)
    assert len(list(run.rglob("resume-*"))) == 1
    assert sitting(run, trial, full_after=0) == 2 * STEPS - 3
    said = (run / "said").read_text().splitlines()
    assert said.count(f"goes on after step 3/{STEPS}") == 1
    [first, second] = [line for line in said if "can't be kept" in line]
    assert first.endswith("once broken off, it goes on from what was kept before") and second.endswith("from what was kept before")
    assert content(run, trial) == content(undisturbed, trial)
    assert not list(run.rglob("resume*"))


def test_a_state_is_durable_before_its_record_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        durable: list[int] = []
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda handle: (durable.append(os.fstat(handle).st_size), fsync(handle)))
        monkeypatch.setattr(artifact, "write_json", lambda path, _: durable.append(0) if path.name == resume.RECORD else None)
        assert not resume.Keeper(tmp_path / "trial", {}).keep(
            "0-1", {}, {"weight": torch.zeros(1)}, lambda folder: (folder / "share").write_bytes(b"x" * 77)
        )
        size = (tmp_path / "trial" / "resume-0-1" / resume.BEST).stat().st_size
        assert sorted(durable[:2]) == sorted([77, size]) and durable[2:] == [0]
    finally:
        dist.destroy_process_group()


def test_a_state_is_not_begun_where_there_is_no_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        keeper = resume.Keeper(tmp_path / "trial", {})
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
        said = keeper.keep("0-1", {}, {"weight": torch.zeros(1000)}, lambda folder: pytest.fail("it was begun"))
        assert said == "0 MiB are free, and it takes 0 MiB" and not list((tmp_path / "trial").iterdir())
    finally:
        dist.destroy_process_group()


@pytest.mark.timeout(300)
def test_killed_between_its_end_and_its_states_a_trial_is_done(make_run: Any, tiny: Path) -> None:
    """What it would go on from goes with the next command, and nobody else's."""
    trial, other, run = trial_of(tiny, "no_cot"), trial_of(tiny, "no_peft"), make_run("run")
    sitting(run, trial, killed_after=2 * STEPS)
    folder = RunFolder(run)
    assert tuned(folder, trial) and list(folder.trial(trial.name).glob("resume*"))
    unfinished = folder.trial(other.name) / "resume-0-3"
    unfinished.mkdir(parents=True)
    runs.run_config(config(tiny), run, stages=("reason",), console=Console(quiet=True))
    assert tuned(folder, trial) and list(run.rglob("resume*")) == [unfinished]


@pytest.mark.timeout(300)
def test_a_state_that_is_not_as_it_was_written_is_not_loaded(make_run: Any, tiny: Path) -> None:
    """It is a pickle: whatever else lies there may run code."""
    trial, run = trial_of(tiny, "no_cot"), make_run("run")
    sitting(run, trial, killed_after=2)
    [pickled] = (run / "trials" / trial.name).glob("resume-*/*/*.pt")
    pickled.write_bytes(pickled.read_bytes() + b"\0")
    assert sitting(run, trial) == 2 * STEPS
    assert "goes on" not in (run / "said").read_text() and not list(run.rglob("resume*"))


def test_only_a_state_of_this_trial_as_it_was_written_is_found(tmp_path: Path) -> None:
    def keeper(**changes: Any) -> resume.Keeper:
        return resume.Keeper(tmp_path, {"fingerprint": "of the trial", "zero": 2, **changes})

    folder = tmp_path / "resume-0-3"
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"state")
    files = resume._hashes(folder)
    artifact.write_json(tmp_path / resume.RECORD, {"identity": keeper()._identity, "folder": folder.name, "files": files, "progress": {"step": 3}})
    assert keeper().find() == resume.Kept(folder, {"step": 3})
    assert keeper(fingerprint="of another").find() is None and keeper(zero=3).find() is None
    (folder / "more.pt").write_bytes(b"")
    assert keeper().find() is None
    (folder / "more.pt").unlink()
    (folder / "state.pt").write_bytes(b"State")
    assert keeper().find() is None
    (tmp_path / resume.RECORD).write_text("{")
    assert keeper().find() is None
