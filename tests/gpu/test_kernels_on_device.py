"""The Triton kernels on a real device, in the dtypes that only a device computes, against their references."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mint_stream.bench.kernels import replayed_us
from mint_stream.bench.lora_cases import Case, Popularity, Tensors
from mint_stream.kernels import Segments, SiteWeights, SliceWeights, add_lora_slices, reference
from mint_stream.kernels.attention_plan import PagedSpan, PagedSpans
from mint_stream.kernels.experts import ExpertPairs
from tests.kernels import mixes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: GPU kernels are only interpreted and compiled"),
]

DEVICE = "cuda"
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def kernels(name: str) -> Any:
    """The Triton modules, which only a machine with a device imports."""
    return importlib.import_module(f"mint_stream.kernels.{name}")


def op(name: str, module: str = "cuda") -> Callable[..., Tensor]:
    found: Callable[..., Tensor] = getattr(kernels(module), name)
    return found


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.float(), expected.float(), atol=TOLERANCE[got.dtype], rtol=TOLERANCE[got.dtype])


@every_dtype
@pytest.mark.parametrize("kind", ["identical", "uniform", "zipf", "distinct"])
@pytest.mark.parametrize(("rank", "rows"), [(1, 3), (5, 40), (16, 64), (33, 64), (128, 200)])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_every_popularity_equals_the_reference(kind: Popularity, rank: int, rows: int, dtype: torch.dtype, batch_invariant: bool) -> None:
    case = Case(512, (256, 64, 1024), rank, rows, rows if kind == "distinct" else 3, kind)
    at = Tensors.of(case, dtype, DEVICE)
    expected, got, again = ([(y.clone(), weights) for y, weights in at.slices] for _ in range(3))
    reference.add_lora_slices(at.x, expected, at.segments)
    for ys in (got, again):
        op("add_lora_slices")(at.x, ys, at.segments, batch_invariant)
    for (right, _), (mine, _), (repeated, _) in zip(expected, got, again, strict=True):
        close(mine, right)
        assert torch.equal(mine, repeated)


def test_the_dispatch_takes_all_slices_that_the_kernels_can_read_and_leaves_the_rest_to_torch() -> None:
    at = Tensors.of(Case(256, (128, 64, 132), 8, 20, 3, "zipf"), torch.bfloat16, DEVICE)
    expected = [(y.clone(), weights) for y, weights in at.slices]
    reference.add_lora_slices(at.x, expected, at.segments)
    add_lora_slices(at.x, [y for y, _ in at.slices], at.segments, SliceWeights([weights for _, weights in at.slices]))
    for (right, _), (mine, _) in zip(expected, at.slices, strict=True):
        close(mine, right)


@every_dtype
def test_base_rows_keep_their_bits_and_neighbours_change_none(dtype: torch.dtype) -> None:
    weights = Tensors.of(Case(512, (256,), 24, 40, 2, "uniform"), dtype, DEVICE).slices[0][1]
    x, y = mixes.random(40, 512, dtype=dtype).to(DEVICE), mixes.random(40, 256, dtype=dtype).to(DEVICE)
    found = []
    for slots in ([-1] * 5 + [0] * 5 + [-1] * 30, [1] * 5 + [0] * 5 + [1] * 29 + [-1]):
        got = y.clone()
        op("add_lora")(x, got, Segments.of_slots(slots), weights, True)
        assert torch.equal(got[39], y[39])
        found.append(got[5:10])
    assert torch.equal(*found)


@every_dtype
def test_gradients_equal_the_reference_and_repeat_their_bits(dtype: torch.dtype) -> None:
    segments = mixes.segments_of([(0, 70), (-1, 3), (1, 20), (0, 9)])
    x, grad_y = (mixes.random(segments.rows, width, dtype=dtype).to(DEVICE) for width in (256, 128))
    sides = [moved(mixes.site([33, 8], 256, 128, dtype, training=True)) for _ in range(3)]
    grads_x = [torch.zeros_like(x) for _ in sides]
    for backward, weights, grad_x in zip((reference.lora_backward, *[op("lora_backward")] * 2), sides, grads_x, strict=True):
        backward(x, grad_y, segments, weights, grad_x)
    close(grads_x[1], grads_x[0])
    assert torch.equal(grads_x[1], grads_x[2])
    for expected, got, again in zip(*(weights.at for weights in sides), strict=True):
        for side in ("grad_A", "grad_Bt"):
            right, mine = getattr(expected, side), getattr(got, side)
            torch.testing.assert_close(mine, right, atol=20 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])
            assert torch.equal(mine, getattr(again, side))


def moved(weights: SiteWeights) -> SiteWeights:
    """The same on the device, gradients as transposed as they were."""
    tensors = ("A", "Bt", "grad_A", "grad_Bt")
    return SiteWeights(
        [lora and type(lora)(**{name: getattr(lora, name).to(DEVICE) for name in tensors}, scaling=lora.scaling) for lora in weights.at]
    )


@every_dtype
@pytest.mark.parametrize(("key", "value", "group"), [(64, 64, 3), (128, 128, 4), (96, 128, 1)])
@pytest.mark.parametrize(("window", "softcap", "sinks"), [(None, None, False), (100, 30.0, True)])
def test_paged_attention_equals_the_reference(
    key: int, value: int, group: int, window: int | None, softcap: float | None, sinks: bool, dtype: torch.dtype
) -> None:
    spans = PagedSpans((PagedSpan(0, 1, 1300, 0), PagedSpan(1, 90, 37, 1), PagedSpan(90, 91, 4, 2)), 91)
    table = torch.randperm(300, device=DEVICE)[:255].view(3, 85).int()
    keys, values = (mixes.random(300, 16, 2, width, dtype=dtype).to(DEVICE) for width in (key, value))
    tensors = (mixes.random(91, 2 * group, key, dtype=dtype).to(DEVICE), keys, values, table)
    rule = {"window": window, "softcap": softcap, "sinks": mixes.random(2 * group, dtype=dtype).to(DEVICE) if sinks else None}
    got, again = (op("paged_attention", "paged_attention")(*tensors, spans, key**-0.5, **rule) for _ in range(2))
    close(got, reference.paged_attention(*tensors, spans, key**-0.5, **rule))
    assert torch.equal(got, again)


def test_a_graph_of_the_op_replays_and_the_host_waits_for_nothing() -> None:
    at = Tensors.of(Case(512, (256, 256), 16, 8, 8, "distinct"), torch.bfloat16, DEVICE)
    op("add_lora_slices")(at.x, at.slices, at.segments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        op("add_lora_slices")(at.x, at.slices, at.segments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph_replays = len(replayed_us(lambda: op("add_lora_slices")(at.x, at.slices, at.segments), 2))
    assert graph_replays == 2


def test_experts_work_is_made_on_the_device_and_the_host_waits_for_nothing() -> None:
    segments, chosen = Segments.of_slots([0] * 20 + [-1] * 4 + [1] * 40), torch.rand(64, 8, device=DEVICE).topk(2).indices
    x, y = (mixes.random(128, width, dtype=torch.bfloat16).to(DEVICE) for width in (256, 128))
    weights = moved(mixes.site([8 * 16, 8 * 5], 256, 128, torch.bfloat16, training=True))
    expected, got = y.clone(), y.clone()
    reference.add_expert_lora(x, expected, ExpertPairs.of(chosen, segments, 8), weights)
    for debug in ("default", "error"):
        torch.cuda.set_sync_debug_mode(debug)
        pairs = kernels("expert_cuda").DevicePairs.of(chosen, segments, 8, 2)
        op("add_expert_lora", "expert_cuda")(x, got, pairs, weights, segments)
        torch.cuda.set_sync_debug_mode("default")
        got, once = y.clone(), got
    close(once, expected)
