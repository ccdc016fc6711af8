"""The GPU kernels against the copy bandwidth of the same device, and against plain torch beside them.

A graph holds a call for each of enough sets of buffers that none is found in the L2 cache; its replay is timed by events.
"""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mint_stream.app.measure import machine, spread, versions
from mint_stream.bench.lora_cases import Case, Tensors, layer, sweep
from mint_stream.bench.wrong import WrongResult
from mint_stream.errors import InvalidRequest
from mint_stream.kernels import Segments, SiteWeights, cpu, reference

Op = Callable[[Tensor, Sequence[tuple[Tensor, SiteWeights]], Segments], None]

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
CHECKED_ROWS = 8
COPIED_BYTES = 1 << 30
MOST_SETS = 64


def run(dtype: str = "bfloat16", repeats: int = 7, with_sweep: bool = True) -> dict[str, Any]:
    """Measure on the first CUDA device. Raises InvalidRequest where there is none, WrongResult when a kernel computes something else."""
    if not torch.cuda.is_available():
        raise InvalidRequest("`bench kernels` needs a CUDA device and torch sees none here: run it on a machine with an NVIDIA GPU")
    cuda = importlib.import_module("mint_stream.kernels.cuda")
    number_type: torch.dtype = getattr(torch, dtype)
    copied = copy_bytes_per_s(repeats)

    def invariant(x: Tensor, slices: Sequence[tuple[Tensor, SiteWeights]], segments: Segments) -> None:
        cuda.add_lora_slices(x, slices, segments, batch_invariant=True)

    ours: dict[str, Op] = {"ours": cuda.add_lora_slices, "batch_invariant": invariant, "torch": plain_torch}
    layers = [measured(layer(rank, adapters), ours, number_type, repeats, copied) for rank in (16, 32) for adapters in (1, 8, 32, 64, 256)]
    cases = sweep() if with_sweep else ()
    return {
        "dtype": dtype,
        "repeats": repeats,
        "copy_gb_per_s": copied / 1e9,
        "layer": layers,
        "sweep": [measured([case], {"ours": cuda.add_lora_slices}, number_type, repeats, copied) for case in cases],
        "machine": machine() | {"device": torch.cuda.get_device_name()},
        "versions": versions("torch", "triton", "mint-stream"),
    }


def measured(cases: Sequence[Case], ops: dict[str, Op], dtype: torch.dtype, repeats: int, copied: float) -> dict[str, Any]:
    """Microseconds of each op over all cases one after another, and what fraction of the copy bandwidth ours reaches."""
    ideal = sum(case.ideal_bytes(dtype.itemsize) for case in cases)
    sets = [[Tensors.of(case, dtype, "cuda", seed) for case in cases] for seed in range(sets_past_cache(ideal, cache_bytes()))]
    for name, op in ops.items():
        check(name, cases, sets[0], op)
    times = {name: spread(graph_us(op, sets, repeats)) for name, op in ops.items()}
    fractions = {name: ideal / (found["median"] * 1e-6) / copied for name, found in times.items()}
    return {"cases": [asdict(case) for case in cases], "ideal_bytes": ideal, "us": times, "fraction_of_copy": fractions}


def check(name: str, cases: Sequence[Case], tensors: Sequence[Tensors], op: Op) -> None:
    """Compare some rows of every case with the reference. Raises WrongResult when they are not the same."""
    for case, at in zip(cases, tensors, strict=True):
        rows = sorted({case.rows * part // CHECKED_ROWS for part in range(CHECKED_ROWS)})
        got = [(y.clone(), weights) for y, weights in at.slices]
        expected = [(y[rows], weights) for y, weights in at.slices]
        op(at.x, got, at.segments)
        reference.add_lora_slices(at.x[rows], expected, at.segments.select(rows))
        for (mine, _), (right, _) in zip(got, expected, strict=True):
            close = torch.allclose(mine[rows].float(), right.float(), atol=TOLERANCE[right.dtype], rtol=TOLERANCE[right.dtype])
            if not close:
                raise WrongResult(f"{name} does not compute what the reference says for {case}: there is no time to report")


def plain_torch(x: Tensor, slices: Sequence[tuple[Tensor, SiteWeights]], segments: Segments) -> None:
    """The baseline: matrix products segment by segment."""
    for y, weights in slices:
        cpu.add_lora(x, y, segments, weights)


def sets_past_cache(set_bytes: int, cache: int) -> int:
    """How many sets of buffers make a set's last use three caches ago."""
    return min(MOST_SETS, max(2, -(-3 * cache // set_bytes)))


def cache_bytes() -> int:
    """The device's L2 cache."""
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def graph_us(op: Op, sets: Sequence[Sequence[Tensors]], repeats: int) -> list[float]:
    """Microseconds for one set, in each of `repeats` replays of a graph over all of them."""

    def call_all() -> None:
        for at in (one for some in sets for one in some):
            op(at.x, at.slices, at.segments)

    return [total / len(sets) for total in replayed_us(call_all, repeats)]


def copy_bytes_per_s(repeats: int) -> float:
    """Bytes read and written a second by the device's own copy of a large buffer."""
    source = torch.ones(COPIED_BYTES // 4, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    times = replayed_us(lambda: target.copy_(source), repeats)
    return 2 * COPIED_BYTES / (spread(times)["median"] * 1e-6)


def replayed_us(work: Callable[[], object], repeats: int) -> list[float]:
    """Microseconds of `work` as a CUDA graph, after one replay that is not counted."""
    work()  # compiles, and places the tables: a graph may hold neither
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return list(_timed(graph, repeats))[1:]


def _timed(graph: torch.cuda.CUDAGraph, repeats: int) -> Iterable[float]:
    for _ in range(repeats + 1):
        begin, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        yield begin.elapsed_time(end) * 1e3
