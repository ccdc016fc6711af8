"""The Triton path for CUDA: one shrink and one expand for all adapters and slices of a layer. Imported where triton and a device are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mint_stream.kernels.expand import expand
from mint_stream.kernels.gradients import gradient
from mint_stream.kernels.segments import LoraWeights, Segments, SiteWeights
from mint_stream.kernels.shrink import shrink
from mint_stream.kernels.tables import column_tables, gradient_table, item_table, run_tables, weight_table
from mint_stream.kernels.tiles import ALIGNMENT_BYTES, DTYPES, RANKS, ROWS
from mint_stream.kernels.worklist import Launch, plan


def takes(x: Tensor, y: Tensor, weights: SiteWeights, experts: int = 1) -> bool:
    """Whether these kernels can read the layer: x and weights contiguous, y's rows too, 16-byte aligned, of one dtype, ranks up to 128.

    With `experts`, A and Bt hold an adapter's weights for that many experts, one after the other. An AdapterBlock on the base's device
    and dtype always can be read; training's transposed masters are copied first (training_cuda).
    """
    used = [lora for lora in weights.at if lora is not None]
    whole = all(t.is_contiguous() and _readable(t, x) for lora in used for t in (lora.A, lora.Bt))
    return whole and x.is_contiguous() and _readable(x, x) and _readable(y, x) and all(lora.rank <= RANKS[-1] * experts for lora in used)


def _readable(tensor: Tensor, x: Tensor) -> bool:
    """[., width] with rows that start at multiples of 16 bytes, like x in device and dtype."""
    same = tensor.dtype == x.dtype and tensor.device == x.device and x.dtype in DTYPES and tensor.stride(1) == 1
    unit = ALIGNMENT_BYTES // tensor.element_size()
    return same and not (tensor.shape[1] % unit or tensor.stride(0) % unit or tensor.data_ptr() % ALIGNMENT_BYTES)


def add_lora(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights, batch_invariant: bool = False) -> None:
    """As reference.add_lora. The same segments give the same bits; with `batch_invariant`, each row's bits are its own adapter's matter."""
    add_lora_slices(x, [(y, weights)], segments, batch_invariant)


def add_lora_slices(x: Tensor, slices: Sequence[tuple[Tensor, SiteWeights]], segments: Segments, batch_invariant: bool = False) -> None:
    """As reference.add_lora_slices, in one shrink and (up to four slices) one expand for all that share x. Bits as add_lora's."""
    added(x, slices, segments, ROWS[0] if batch_invariant else None)


def added(x: Tensor, slices: Sequence[tuple[Tensor, SiteWeights]], segments: Segments, fixed_rows: int | None) -> None:
    """add_lora_slices; with `fixed_rows` (of worklist.plan) each row's bits are its own adapter's matter."""
    for y, weights in slices:
        _check(x, y, segments, weights)
    sites = [weights for _, weights in slices]
    launches = plan(segments, _ranks(sites), x.shape[1], x.dtype, fixed_rows, len(slices))
    with torch.cuda.device(x.get_device()):  # -1, no change, where triton interprets on the CPU
        for launch in launches:
            h = shrunk(x, segments, sites, launch)
            items, table = item_table(segments, launch, x.device), weight_table(sites, x.device)
            ys = [y for y, _ in slices]
            expand(h, ys, items, table, column_tables(segments, ys, launch), launch)


def takes_backward(x: Tensor, grad_y: Tensor, weights: SiteWeights, grad_x: Tensor | None) -> bool:
    """Whether these kernels can make the layer's gradients: what `takes` asks, no dropout, gradients of A and Bt in fp32."""
    used = [lora for lora in weights.at if lora is not None]
    fp32 = all(grad.dtype == torch.float32 for lora in used for grad in (lora.grad_A, lora.grad_Bt) if grad is not None)
    plain = fp32 and grad_y.is_contiguous() and all(lora.dropout is None for lora in used)
    return plain and takes(x, grad_y, weights) and (grad_x is None or _readable(grad_x, x))


def lora_backward(x: Tensor, grad_y: Tensor, segments: Segments, weights: SiteWeights, grad_x: Tensor | None) -> None:
    """As reference.lora_backward. An adapter's gradients, and its rows of grad_x, have the bits that they have without company.

    The gradient through h is shrink and expand with A and Bt changing places; the weights' gradients are sums over each adapter's rows.
    """
    _check(x, grad_y, segments, weights)
    if not takes_backward(x, grad_y, weights, grad_x):
        raise ValueError("the CUDA kernels make gradients without dropout, in fp32 for A and Bt, from contiguous and aligned tensors")
    narrow, wide = (plan(segments, weights.ranks, side.shape[1], x.dtype, ROWS[1]) for side in (x, grad_y))
    with torch.cuda.device(x.get_device()):
        for down, up in zip(narrow, wide, strict=True):
            items, runs = run_tables(segments, down, x.device)
            grad_h = shrunk(grad_y, segments, [weights], up, swapped=True)
            gradient(grad_h, x, items, runs, gradient_table(weights, "grad_A", x.device), up)
            gradient(shrunk(x, segments, [weights], down), grad_y, items, runs, gradient_table(weights, "grad_Bt", x.device), down)
            if grad_x is not None:
                table, lines = weight_table([weights], x.device, swapped=True), column_tables(segments, [grad_x], up)
                expand(grad_h, [grad_x], item_table(segments, up, x.device), table, lines, up)


def shrunk(x: Tensor, segments: Segments, sites: Sequence[SiteWeights], launch: Launch, swapped: bool = False) -> Tensor:
    """h [planes, slices, rows, tile rank] of `launch`: x Aᵀ, or x Btᵀ when swapped. Rows outside the launch hold anything."""
    h = torch.empty(launch.planes, len(sites), x.shape[0], launch.tile.rank, dtype=torch.float32, device=x.device)
    shrink(x, h, item_table(segments, launch, x.device), weight_table(sites, x.device, swapped), launch)
    return h


def _ranks(sites: Sequence[SiteWeights]) -> list[int]:
    """Each slot's largest rank in any slice."""
    return [max(ranks) for ranks in zip(*(weights.ranks for weights in sites), strict=True)]


def _check(x: Tensor, y: Tensor, segments: Segments, weights: SiteWeights) -> None:
    if not takes(x, y, weights):
        raise ValueError("the CUDA kernels need contiguous, 16-byte aligned x, y, A and Bt of one dtype, and ranks up to 128")
    if x.shape[0] != segments.rows or y.shape[0] != segments.rows:
        raise ValueError(f"the pass has {segments.rows} rows, x has {x.shape[0]} and y has {y.shape[0]}")
    for lora in weights.at:
        if lora is not None and not fits(lora, x, y):
            raise ValueError(f"x {list(x.shape)} and y {list(y.shape)} do not fit A {list(lora.A.shape)} and Bt {list(lora.Bt.shape)}")


def fits(lora: LoraWeights, x: Tensor, y: Tensor) -> bool:
    """Whether the adapter's shapes are those of a layer from x to y."""
    return lora.A.shape == (lora.rank, x.shape[1]) and lora.Bt.shape == (lora.rank, y.shape[1])
