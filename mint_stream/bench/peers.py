"""What our serving is compared with, on the same workload: transformers, PEFT, the base's linear layers alone, and vLLM's CPU build."""

import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from mint_stream.bench.workload import Load, Workload, check, generated, peft_model, workload, write_peft
from mint_stream.model.base import ResidentBase, load_base

CHUNK_ROWS = 512
"""Rows of a prefill pass of the linear layers; the engine's step holds as many."""
VLLM_SCRIPT = Path(__file__).with_name("vllm_cpu.py")


class Peers:
    """The others, in a process of their own.

    OpenMP waits for its threads in another way, many times slower here, once the threads of all who call it outnumber the cores. So the
    process that is measured has one such caller, and so has this one.
    """

    def __init__(self, base: Path, load: Load) -> None:
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (base, load))

    def seconds(self, side: str) -> float:
        """How long the workload takes `side`, one of PEERS."""
        return self._process.submit(_seconds, side).result()

    def check(self, ours: Sequence[tuple[int, ...]]) -> None:
        """As workload.check. Raises WrongResult."""
        self._process.submit(_check, ours).result()

    def stop(self) -> None:
        """End the process."""
        self._process.shutdown()


@dataclass(frozen=True)
class _Scene:
    """What the process of the others has loaded."""

    plain: Any
    work: Workload
    limit: "LinearLimit"


_scene: dict[str, _Scene] = {}


def _begin(base: Path, load: Load) -> None:
    dtype: torch.dtype = getattr(torch, load.dtype)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True).eval()
    resident = load_base(base, dtype=dtype)
    work = workload(resident, load)
    _scene["here"] = _Scene(plain, work, LinearLimit(resident, work))


def _seconds(side: str) -> float:
    return PEERS[side](_scene["here"])


def _check(ours: Sequence[tuple[int, ...]]) -> None:
    check(_scene["here"].plain, _scene["here"].work, ours)


def transformers_s(plain: Any, work: Workload) -> float:
    """Seconds that transformers' generate takes for the bare base."""
    return _timed(lambda: generated(plain, torch.tensor(work.prompts), work.new_tokens))


def peft_s(plain: Any, work: Workload) -> float:
    """Seconds that PEFT takes, each row with the adapter it asks for (`adapter_names`)."""
    with peft_model(plain, work.adapters) as adapted:
        names = [str(work.adapter_of(request)) for request in range(len(work.prompts))]
        return _timed(lambda: generated(adapted, torch.tensor(work.prompts), work.new_tokens, adapter_names=names))


def _timed(what: Callable[[], object]) -> float:
    begun = time.perf_counter()
    what()
    return time.perf_counter() - begun


class LinearLimit:
    """The base's linear layers and nothing else, over the rows of the workload: no engine that multiplies by them can be faster.

    Layers multiply as torch does and as oneDNN does with weights in its own layout; of each phase the better counts.
    """

    def __init__(self, base: ResidentBase, work: Workload) -> None:
        layers = {path: base.model.get_submodule(path) for path in base.linears}
        self._head = layers.pop(base.output_head) if base.output_head is not None else None
        self._body = list(layers.values())
        self._work, self._dtype = work, base.dtype
        self._packed: dict[int, Tensor] = {}

    @torch.inference_mode()
    def seconds(self) -> float:
        """Prefill and decode, each the better of the two ways."""
        rows = len(self._work.prompts)
        chunks = [CHUNK_ROWS] * (rows * self._work.prompt_tokens // CHUNK_ROWS) + [rows * self._work.prompt_tokens % CHUNK_ROWS]
        prefill = [(self._body, count) for count in chunks if count] + [([self._head], rows)]
        decode = [([*self._body, self._head], rows)] * (self._work.new_tokens - 1)
        return sum(min(self._run(phase, multiply) for multiply in (self._plainly, self._by_onednn)) for phase in (prefill, decode))

    def _run(self, phase: Sequence[tuple[Sequence[nn.Linear | None], int]], multiply: Callable[[nn.Linear, Tensor], Tensor]) -> float:
        inputs = {(layer.in_features, rows): None for layers, rows in phase for layer in layers if layer is not None}
        xs = {key: torch.randn(key[1], key[0]).to(self._dtype) for key in inputs}
        work = [(layer, xs[layer.in_features, rows]) for layers, rows in phase for layer in layers if layer is not None]
        for layer, x in work[: len(self._body) + 1]:
            multiply(layer, x)  # the first use lays weights out
        return _timed(lambda: [multiply(layer, x) for layer, x in work])

    def _plainly(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return functional.linear(x, layer.weight, layer.bias)

    def _by_onednn(self, layer: nn.Linear, x: Tensor) -> Tensor:
        if id(layer) not in self._packed:
            self._packed[id(layer)] = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed[id(layer)], layer.bias, "none", [], "")
        return y


PEERS: Mapping[str, Callable[[_Scene], float]] = {
    "peft": lambda scene: peft_s(scene.plain, scene.work),
    "transformers": lambda scene: transformers_s(scene.plain, scene.work),
    "linear_limit": lambda scene: scene.limit.seconds(),
}


def vllm_rates(python: Path, base: Path, work: Workload, dtype: str, repeats: int) -> dict[str, list[float]]:
    """Output tokens a second of vLLM's CPU build in the environment of `python`: with the adapters, and with none."""
    with tempfile.TemporaryDirectory() as folder:
        for number, weights in enumerate(work.adapters):
            write_peft(weights, Path(folder, str(number)))
        return {
            side: _vllm(python, {"base": str(base), "adapters": adapters, "prompts": work.prompts, "new_tokens": work.new_tokens,
                                 "rank": max(weights.rank for weights in work.adapters), "dtype": dtype, "repeats": repeats})
            for side, adapters in (("vllm_adapters", [str(Path(folder, str(n))) for n in range(len(work.adapters))]), ("vllm_base", []))
        }  # fmt: skip


def _vllm(python: Path, asked: dict[str, Any]) -> list[float]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "PYTHON"))}
    done = subprocess.run(
        [python, "-P", VLLM_SCRIPT], input=json.dumps(asked), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"vLLM did not run under {python}: {done.stderr.strip()[-2000:]}")
    rates: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return rates
