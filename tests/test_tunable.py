"""The tunable under DeepSpeed against a plain PyTorch loop: one loss curve, whatever the ZeRO stage, the number of workers and the precision."""

from __future__ import annotations

import gc
import os
import pickle
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch
from test_lora import kept
from test_overfit import memory_task

from fiat_ray import config as configs
from fiat_ray.augmented import Example
from fiat_ray.campaign import Trial
from fiat_ray.prepare import prepare
from fiat_ray.render import Renderer
from fiat_ray.tune import model as checkpoints
from fiat_ray.tune import tunable as tunables
from fiat_ray.tune.adapter import add_lora
from fiat_ray.tune.batches import micro_batches, pack
from fiat_ray.tune.loss import SupervisedLoss
from fiat_ray.tune.memory import AtOnce
from fiat_ray.tune.validate import answer

METHODS = ("no_cot", "no_peft")
STEPS, ROWS, BUDGET = 50, 4, 96
"""The budget makes several micro-batches of a step, whose gradients are accumulated; with two workers some have nothing left."""
RATE = 1e-3

Curves = dict[tuple[Any, ...], list[float]]


def trial(folder: Path, method: str) -> Trial:
    config = configs.load({"task": "memory", "tunables": {"xs": {"model": str(folder)}}, "methods": [method], "steps": STEPS})
    [found] = prepare(config, {"memory": memory_task()}).trials
    return replace(found, learning_rates=(RATE,))


def batches() -> Iterator[list[Example]]:
    rows = [Example(r.id, r.split, r.language, f"question: {r.fields}", r.targets, r.group) for r in memory_task().split("train")]
    for step in range(STEPS):
        yield [rows[(step * ROWS + at) % len(rows)] for at in range(ROWS)]


def deepspeed_curves(rank: int, workers: int, folder: Path) -> None:
    """In a process of its own: mean loss of each step, by method, ZeRO stage and precision, into ``curves-{workers}.pickle``."""
    import torch.distributed as dist

    from fiat_ray.tune.lane import _quiet_deepspeed

    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{workers}", rank=rank, world_size=workers)
    _quiet_deepspeed()
    tunables.memory.FULL_SPEED["cpu"] = BUDGET
    found: Curves = {}
    for method, zero, dtype in product(METHODS, (0, 2, 3), (torch.float32, torch.bfloat16)):
        tuned = tunables.DeepSpeedTunable(trial(folder, method), memory_task(), Renderer(folder), folder, RATE, STEPS, zero, dtype)
        tuned.initialize()
        for x in batches():
            tuned.gradient(x, [None] * len(x))
            tuned.update()
        found[method, zero, dtype] = tuned.losses
        tuned.close()
    if rank == 0:
        (folder / f"curves-{workers}.pickle").write_bytes(pickle.dumps(found))
    dist.barrier()


def two_rates(folder: Path) -> None:
    """In a process of its own: no model of the first learning rate is there when the second one's is loaded."""
    import torch.distributed as dist

    from fiat_ray.tune.lane import _quiet_deepspeed
    from fiat_ray.tune.trial import Shared, _Session

    os.environ["LOCAL_RANK"] = "0"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-rates", rank=0, world_size=1)
    _quiet_deepspeed()
    rows = [Example(r.id, r.split, r.language, "question", r.targets, r.group) for r in memory_task().rows]
    shared, load = Shared(), checkpoints.load
    before: list[weakref.ref[torch.nn.Module]] = []

    def watched(*given: Any) -> Any:
        assert all(model() is None for model in before)
        model = load(*given)
        before.append(weakref.ref(model))
        return model

    def session(method: str) -> _Session:
        of = replace(trial(folder, method), answer_tokens=2)
        return _Session(of, memory_task(), Renderer(folder), rows, {}, None, folder / method, 0, 1.0, lambda *_: None, shared)

    checkpoints.load = watched
    gc.disable()  # by chance it might be in time
    session("no_cot").tune(RATE)
    full = session("no_peft")
    for rate in (RATE, 2 * RATE):
        full.tune(rate)
    assert len(before) == 3 and full.model is before[2]()


def unlike_workers(rank: int, workers: int, folder: Path) -> None:
    """In a process of its own: what a worker, whose device has less memory the higher its rank, passes through its model, and what it answers."""
    import torch.distributed as dist

    from fiat_ray.tune.lane import _quiet_deepspeed

    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-unlike", rank=rank, world_size=workers)
    _quiet_deepspeed()
    tunables.memory.of_device = lambda *_: 2**24 >> rank
    of, renderer = trial(folder, "no_cot"), Renderer(folder)
    tuned = tunables.DeepSpeedTunable(of, memory_task(), renderer, folder, RATE, STEPS, 0, torch.float32)
    tuned.initialize()
    rows = next(batches())
    prompts = [renderer.tunable_prompt(memory_task(), e.input, None, of.recipe) for e in rows]
    model = checkpoints.load(folder, torch.float32)
    with torch.no_grad():
        # Other weights stand for the rounding of another GPU: left alone, this worker would answer something else.
        model.get_input_embeddings().weight.mul_(-1 if rank else 1)
        answers, _ = answer(model, renderer, prompts, [e.targets[0] for e in rows], 6, tuned.passes.without_gradients)
    (folder / f"unlike-{rank}.pickle").write_bytes(pickle.dumps((tuned.passes, answers)))
    dist.barrier()


def plain_curve(folder: Path, method: str, dtype: torch.dtype) -> list[float]:
    """The same steps without DeepSpeed: float32 masters, gradients added up in float32, clipped at norm 1."""
    of = trial(folder, method)
    model = checkpoints.load(folder, dtype)
    if of.recipe.peft:
        model = add_lora(model, of.lora, of.seed)
    tuned = [p for p in model.parameters() if p.requires_grad]
    masters = [p.detach().float().clone().requires_grad_() for p in tuned]
    optimizer, loss_of = torch.optim.AdamW(masters, lr=RATE, weight_decay=0.0), SupervisedLoss(model)
    renderer, losses = Renderer(folder), []
    for step, x in enumerate(batches()):
        optimizer.zero_grad()
        total = 0.0
        for batch in micro_batches(tunables.supervised(renderer, memory_task(), of.recipe, x, [None] * len(x)), AtOnce(BUDGET, BUDGET)):
            model.zero_grad()
            loss = loss_of(pack(batch, torch.device("cpu")))
            loss.backward()
            total += loss.item()
            for master, parameter in zip(masters, tuned, strict=True):
                assert parameter.grad is not None
                master.grad = parameter.grad.float() + (0 if master.grad is None else master.grad)
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        warm_up = max(1, round(tunables.WARM_UP * STEPS))
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / warm_up, (STEPS - step) / (STEPS - warm_up + 1))
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, tuned, strict=True):
                parameter.copy_(master)
        losses.append(total)
    return losses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("tunable") / "tiny")


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def curves(request: pytest.FixtureRequest, folder: Path) -> Curves:
    processes = [get_context("spawn").Process(target=deepspeed_curves, args=(rank, request.param, folder)) for rank in range(request.param)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found: Curves = pickle.loads((folder / f"curves-{request.param}.pickle").read_bytes())
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_one_loss_curve(curves: Curves, folder: Path, method: str, dtype: torch.dtype) -> None:
    """DeepSpeed 0.19's own optimizer for bfloat16 at stage 0 would lose all but a part of an accumulated gradient."""
    expected = plain_curve(folder, method, dtype)
    assert expected[-1] < 0.9 * expected[0]
    for zero in (0, 2, 3):
        assert curves[method, zero, dtype] == pytest.approx(expected, rel=1e-3 if dtype == torch.float32 else 0.05), zero


def what_a_step_moves(folder: Path, found: Path) -> None:
    """In a process of its own: full tuning in bfloat16 at a small rate; the base's weights, the masters' and the model's."""
    import torch.distributed as dist

    from fiat_ray.tune.lane import _quiet_deepspeed

    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", init_method=f"file://{found}.meeting", rank=0, world_size=1)
    _quiet_deepspeed()
    arguments = (trial(folder, "no_peft"), memory_task(), Renderer(folder), folder, 2e-5, 4, 2, torch.bfloat16)
    tuned = tunables.DeepSpeedTunable(*arguments)
    tuned.initialize()
    base = tuned.engine.optimizer.fp32_groups_flat_partition[0].clone()
    for x, _ in zip(batches(), range(3), strict=False):
        tuned.gradient(x, [None] * len(x))
        tuned.update()
    torch.save({"base": base, "masters": tuned.engine.optimizer.fp32_groups_flat_partition[0], "weights": tuned.state()}, found)


def test_full_tuning_in_bfloat16_moves_weights_by_less_than_it_tells_apart(tmp_path: Path) -> None:
    folder, found = tiny_model.write(tmp_path / "tiny", dtype="bfloat16"), tmp_path / "found"
    process = get_context("spawn").Process(target=what_a_step_moves, args=(folder, found))
    process.start()
    process.join()
    assert process.exitcode == 0
    base, masters, weights = torch.load(found, weights_only=True).values()
    flat = torch.cat([weight.flatten() for weight in weights.values()]).float()
    base, masters = base[: len(flat)], masters[: len(flat)]
    assert kept(masters - base, masters.bfloat16().float() - base) < 0.8
    assert kept(masters - base, flat - base) == pytest.approx(1, abs=0.1)


def test_only_lora_is_tuned_in_bfloat16_on_a_cpu_and_only_where_products_are_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single, half = (tiny_model.write(tmp_path / dtype, dtype=dtype) for dtype in ("float32", "bfloat16"))
    for amx in (True, False):
        monkeypatch.setattr(tunables.cpu, "has", lambda *_, amx=amx: amx)
        found = [tunables.precision(folder, peft, workers) for folder in (single, half) for peft, workers in ((True, 1), (True, 2), (False, 1))]
        assert [dtype == torch.bfloat16 for dtype in found] == [False, False, False, amx, False, False]


def test_workers_with_unlike_devices_split_a_step_alike_and_decode_the_same_tokens(folder: Path) -> None:
    """Each takes its share of one split: of two, rows would be tuned twice or never. Under ZeRO-3 a pass too many waits for ever."""
    processes = [get_context("spawn").Process(target=unlike_workers, args=(rank, 2, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (passes, answers), (of_less, answered) = (pickle.loads((folder / f"unlike-{rank}.pickle").read_bytes()) for rank in range(2))
    assert passes == of_less and passes.at_once.tokens < tunables.memory.FULL_SPEED["cpu"]
    assert answers == answered and any(answers)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((10, 0), torch.bfloat16)])
def test_gpus_tune_in_bfloat16_where_they_compute_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    """Whatever the processor beside them has: torch counts GPUs in that only emulate it, and the kernel for packed prompts has no code for those."""
    half = tiny_model.write(tmp_path / "half", dtype="bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(tunables.cpu, "has", lambda *_: True)
    assert {tunables.precision(half, peft, workers) for peft in (True, False) for workers in (1, 2)} == {dtype}


def test_one_learning_rates_model_makes_room_for_the_nexts(folder: Path) -> None:
    process = get_context("spawn").Process(target=two_rates, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == 0
