"""The only vLLM import: generate, score labels, swap weights.

The engine is created in the very thread that steps it (OpenMP's pools are per thread), and everything else reaches it through a queue.
"""

from __future__ import annotations

import itertools
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fiat_ray import cpu, models
from fiat_ray.predict import one_token_each

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine


GPU_ROWS, CPU_ROWS = 256, 32
"""Rows that an engine generates side by side, unless told otherwise."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TQDM_DISABLE": "1",
}


@dataclass(frozen=True)
class Completion:
    text: str
    finish_reason: str
    """``stop`` (EOS or a stop string) or ``length``."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt's, those that the prefix cache held."""
    output_tokens: int
    seconds: float
    """From admission to the last token."""
    logprobs: Any = None


@dataclass(frozen=True)
class EngineOptions:
    max_length: int
    """Prompt and output together, in tokens."""
    dtype: str = "auto"
    """``auto``: the checkpoint's, but bfloat16 for float32; float32 on a CPU without bfloat16 arithmetic, where everything would take three times as
    long."""
    tensor_parallel: int = 1
    gpu_memory: float = 0.9
    """Share of a GPU's memory."""
    max_num_seqs: int | None = None


class Engine:
    """vLLM in this process, behind a thread that steps it. Close it to give its memory back."""

    def __init__(self, model: Path, options: EngineOptions) -> None:
        self._inbox: queue.SimpleQueue[Callable[[LLMEngine], None] | None] = queue.SimpleQueue()
        self._waiting: dict[str, tuple[Future[Any], float]] = {}
        self._numbers = itertools.count()
        self._broken: BaseException | None = None
        """What ended the stepping thread."""
        self._model = model
        self._options = options
        self.progress: Callable[[], object] = lambda: None
        """Called whenever a prompt is done."""
        ready: Future[None] = Future()
        cpu.keep_memory()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True, name="engine")
        self._thread.start()
        ready.result()

    def submit(self, prompt: Sequence[int], params: SamplingParams) -> Future[Any]:
        """Admit a prompt (token ids). The future gives vLLM's finished ``RequestOutput``, with ``seconds`` set on it."""
        self._check_alive()
        future: Future[Any] = Future()

        def add(engine: LLMEngine) -> None:
            try:
                # vLLM gives requests ids of its own; the one it returns is the one its outputs carry.
                name = str(next(self._numbers))
                engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
                self._waiting[name] = (future, time.perf_counter())
            except Exception as error:  # a refused prompt is that row's failure, not the engine's
                future.set_exception(error)

        self._inbox.put(add)
        return future

    def complete(self, prompt: Sequence[int], max_tokens: int, stop: Sequence[str] = (), stop_ids: Sequence[int] = ()) -> Future[Completion]:
        """Greedy decoding of one prompt."""
        done: Future[Completion] = Future()

        def finish(future: Future[Any]) -> None:
            error = future.exception()
            done.set_exception(error) if error else done.set_result(_completion(future.result()))

        self.submit(prompt, _greedy(max_tokens, stop, stop_ids)).add_done_callback(finish)
        return done

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int, stop_ids: Sequence[int] = ()) -> list[Completion]:
        """Greedy decoding of many prompts, results in their order."""
        return self._results([self.complete(prompt, max_tokens, (), stop_ids) for prompt in prompts])

    def label_logprobs(self, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], eos: int) -> np.ndarray:
        """log P(label | prompt), shape (prompts, labels), see ``predict.one_token_each``. ``labels`` are token ids without EOS."""
        if one_token_each(labels):
            tokens = [label[0] for label in labels]
            params = _params(max_tokens=1, logprob_token_ids=tokens)
            outputs = self._results([self.submit(prompt, params) for prompt in prompts])
            return np.array([[o.outputs[0].logprobs[0][token].logprob for token in tokens] for o in outputs]).reshape(-1, len(labels))
        endings = [[*label, eos] for label in labels]
        params = _params(max_tokens=1, prompt_logprobs=0)
        outputs = self._results([self.submit([*prompt, *ending], params) for prompt in prompts for ending in endings])
        found = [_ending_logprob(output, ending) for output, ending in zip(outputs, endings * len(prompts), strict=True)]
        return np.array(found).reshape(-1, len(labels))

    def swap(self, weights: Path | Mapping[str, torch.Tensor], changed: Collection[str] | None = None) -> None:
        """Load other weights of the same architecture into the running engine: a checkpoint's folder, or tensors by the checkpoint's names.

        vLLM only logs tensors that are lacking and keeps the old ones, so weights that are not whole raise ``ValueError`` here.
        ``changed``: the engine has all others already, which are left out. Raises ``RuntimeError`` while prompts are in work.
        """
        if isinstance(weights, Path):
            models.check_same_tensors(self._model, weights)
            given: dict[str, Any] = {"weights_path": str(weights)}
        elif self.takes(weights):
            given = {"weights_iterator": iter(_whole_layers(weights, weights if changed is None else changed).items())}
        else:
            raise ValueError(f"the tensors given are not those of {self._model}, or the engine runs in several processes")
        same_embedding = changed is not None and all(_layer(name) != name for name in changed)

        def reload(engine: LLMEngine) -> None:
            _forget_prefixes(engine)
            engine.collective_rpc("reload_weights", kwargs=given)
            if not (same_embedding or _on_gpu()):
                engine.apply_model(_repack_tied_head)

        self._call(reload)

    def takes(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether ``swap`` takes them as they lie in memory: the engine runs in one process, and names and shapes are those of its checkpoint."""
        return self._options.tensor_parallel == 1 and self._shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its checkpoint's tensors, by name."""
        tied = models.tied_head(self._model)
        return {name: tuple(shape) for name, shape in models.shapes(self._model).items() if name not in tied}

    def first_logprobs(self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of each prompt's ``tokens`` as its first output: compared with the tuned model's own, they show that a swap took."""
        asked = [self.submit(prompt, _params(max_tokens=1, logprob_token_ids=list(of))) for prompt, of in zip(prompts, tokens, strict=True)]
        found = [output.outputs[0].logprobs[0] for output in self._results(asked)]
        return [[logprobs[token].logprob for token in of] for logprobs, of in zip(found, tokens, strict=True)]

    def forget_prefixes(self) -> None:
        """Empty the prefix cache, as a swap does. Raises ``RuntimeError`` while prompts are in work."""
        self._call(_forget_prefixes)

    def run(self, function: Callable[[], Any]) -> Any:
        """Call it in the engine's own thread. On a CPU each thread has a pool of others for torch, and two such pools keep each other waiting."""
        return self._call(lambda _: function())

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join()
        self._broken = self._broken or RuntimeError("it was closed")

    def _check_alive(self) -> None:
        if self._broken is not None:
            raise RuntimeError(f"the engine stopped: {self._broken}")

    def _results(self, futures: Sequence[Future[Any]]) -> list[Any]:
        """What they give, in order. An error is raised when all have ended: a swap of weights must not find other prompts in work."""
        while wait(futures, 2.0).not_done:
            self._check_alive()  # an engine that stopped tells it to the prompts that it had admitted
        return [future.result() for future in futures]

    def _call(self, function: Callable[[LLMEngine], Any]) -> Any:
        self._check_alive()
        done: Future[Any] = Future()

        def run(engine: LLMEngine) -> None:
            try:
                done.set_result(function(engine))
            except Exception as error:
                done.set_exception(error)

        self._inbox.put(run)
        return done.result()

    def _run(self, ready: Future[None]) -> None:
        try:
            engine = _create(self._model, self._options)
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            self._step(engine)
        except BaseException as error:  # every waiting row must hear of it
            self._broken = error
            for future, _ in self._waiting.values():
                future.set_exception(RuntimeError(f"the engine stopped: {error}"))

    def _step(self, engine: LLMEngine) -> None:
        while True:
            while not self._inbox.empty() or not engine.has_unfinished_requests():
                command = self._inbox.get()
                if command is None:
                    engine.engine_core.shutdown()
                    return
                command(engine)
            for output in engine.step():
                if output.finished:
                    future, start = self._waiting.pop(output.request_id.split("-")[0])
                    output.seconds = time.perf_counter() - start
                    self.progress()  # before whoever waits says that there is nothing more to do
                    future.set_result(output)


def _forget_prefixes(engine: LLMEngine) -> None:
    if not engine.reset_prefix_cache():  # else keys and values of other weights would be read for the same tokens
        raise RuntimeError("the engine's prefix cache can't be emptied while prompts are in work")


def _whole_layers(weights: Mapping[str, torch.Tensor], changed: Collection[str]) -> dict[str, torch.Tensor]:
    """Those that ``changed``, and all others of their layers: vLLM makes one tensor of several of a layer (q, k and v; gate and up; experts)."""
    layers = {_layer(name) for name in changed}
    return {name: tensor for name, tensor in weights.items() if _layer(name) in layers}


def _layer(name: str) -> str:
    """The layer of the stack that a tensor is part of, by name; a tensor outside of the stack stands for itself."""
    found = re.match(r".*?\.\d+\.", name)
    return found.group() if found else name


def _repack_tied_head(model: Any) -> None:
    """On a CPU vLLM keeps a packed copy of the output layer, and does not renew it where that layer is the embedding, whose weights were reloaded."""
    head, embedding = getattr(model, "lm_head", None), getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is not None and embedding is not None and model.config.tie_word_embeddings:
        head.tie_weights(embedding)
        head.quant_method.process_weights_after_loading(head)


def _on_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def set_up_process() -> None:
    """How vLLM runs in a process of ours; to be called before it is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    if not _on_gpu():
        # vLLM compiles small functions in spite of `enforce_eager`: seconds at a first use, and an error without a C++ compiler.
        torch._dynamo.config.disable = True
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))


def arguments(model: Path, options: EngineOptions) -> dict[str, Any]:
    """vLLM's arguments for an engine on this machine."""
    on_gpu = _on_gpu()
    dtype = "float32" if options.dtype == "auto" and not on_gpu and not cpu.has("avx512_bf16", "amx_bf16", "bf16") else options.dtype
    if on_gpu:
        where: dict[str, Any] = {"gpu_memory_utilization": options.gpu_memory}
    else:
        where = {"kv_cache_memory_bytes": 2 << 30, "block_size": 32, "enforce_eager": True, "distributed_executor_backend": "uni"}
    return {
        "model": str(model),
        "dtype": dtype,
        "max_model_len": options.max_length,
        "max_num_seqs": options.max_num_seqs or (GPU_ROWS if on_gpu else CPU_ROWS),
        "max_num_batched_tokens": 8192 if on_gpu else 2048,
        "tensor_parallel_size": options.tensor_parallel,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "seed": 0,
        "use_tqdm_on_load": False,
        **where,
    }


def _create(model: Path, options: EngineOptions) -> LLMEngine:
    set_up_process()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(EngineArgs(**arguments(model, options)))


def _params(**options: Any) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(temperature=0.0, output_kind=RequestOutputKind.FINAL_ONLY, **options)


def _greedy(max_tokens: int, stop: Sequence[str], stop_ids: Sequence[int]) -> SamplingParams:
    return _params(max_tokens=max_tokens, stop=list(stop) or None, stop_token_ids=list(stop_ids) or None)


def _completion(output: Any) -> Completion:
    first = output.outputs[0]
    read, cached = len(output.prompt_token_ids), output.num_cached_tokens or 0
    return Completion(first.text, str(first.finish_reason), read, cached, len(first.token_ids), output.seconds)


def _ending_logprob(output: Any, ending: Sequence[int]) -> float:
    positions = output.prompt_logprobs[-len(ending) :]
    return float(sum(position[token].logprob for position, token in zip(positions, ending, strict=True)))
