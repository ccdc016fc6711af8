"""Every variant that the dispatch can choose compiles for every architecture, fits its shared memory and registers, and spills nothing."""

import itertools
import os
from collections.abc import Callable, Iterator

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("triton interprets in this process", allow_module_level=True)

from mint_stream.kernels import attention_backward, gradients
from mint_stream.kernels.attention_backward import key_gradient_kernel, query_gradient_kernel
from mint_stream.kernels.attention_plan import attention_tile
from mint_stream.kernels.expand import STAGES, expand_constants, expand_kernel
from mint_stream.kernels.gradients import gradient_constants, gradient_kernel
from mint_stream.kernels.paged_attention import attention_constants, combine_constants, combine_kernel, paged_attention_kernel
from mint_stream.kernels.shrink import shrink_constants, shrink_kernel
from mint_stream.kernels.tiles import DTYPES, ROWS, every_tile
from tests.kernels.compiling import NAMES, SHARED_BYTES, Variant, faults

STRIDES = ("q_row", "q_head", "k_page", "k_token", "k_head", "v_page", "v_token", "v_head")
"""All multiples of 16 in a model, and specialised as such."""


def shrinks() -> Iterator[Variant]:
    for at in every_tile():
        pointers = {"x": f"*{NAMES[at.dtype]}", "h": "*fp32", "items": "*i32", "table": "*i64"}
        yield Variant(shrink_kernel, pointers, shrink_constants(at), at.warps, at.stages)


def expands() -> Iterator[Variant]:
    for at in every_tile():
        ys = dict.fromkeys(("y0", "y1", "y2", "y3"), f"*{NAMES[at.dtype]}")
        pointers = {"h": "*fp32", **ys, "items": "*i32", "table": "*i64", "columns": "*i32"}
        yield Variant(expand_kernel, pointers, expand_constants(at), at.warps, STAGES)


def gradient_sums() -> Iterator[Variant]:
    for at in every_tile():
        if at.rows == ROWS[1]:  # the only height that training uses
            pointers = {"h": "*fp32", "z": f"*{NAMES[at.dtype]}", "items": "*i32", "runs": "*i32", "table": "*i64"}
            yield Variant(gradient_kernel, pointers, gradient_constants(at), gradients.WARPS, gradients.STAGES)


WIDTHS = {
    (64, 64): list(DTYPES),
    (128, 128): list(DTYPES),
    (192, 128): [torch.bfloat16],
    (256, 256): [torch.float16, torch.bfloat16],
    (80, 96): [torch.float32],
}
"""Of keys and values in models; every width is compiled with softcap and sinks, which only add to what is needed without them."""


def attentions() -> Iterator[Variant]:
    for ((key, value), dtypes), low in itertools.product(WIDTHS.items(), (False, True)):
        for dtype in dtypes:
            at = attention_tile(low, 4, max(key, value), dtype)
            sides = dict.fromkeys(("q", "keys", "values", "out", "sinks"), f"*{NAMES[dtype]}")
            pointers = {**sides, "sums": "*fp32", "marks": "*fp32", "items": "*i32", "table": "*i32"}
            constants = attention_constants(16, 4, key, value, True, True)
            cut = {"HEIGHT": at.height, "TOKENS": at.tokens, "SPLIT": low}
            yield Variant(paged_attention_kernel, pointers, constants | cut, at.warps, at.stages, ("scaling", "softcap"), STRIDES)


def attention_gradients() -> Iterator[Variant]:
    for (key, value), dtypes in WIDTHS.items():
        for dtype in dtypes:
            constants = attention_backward.backward_constants(4, key, value, True, dtype)
            named = ("q", "k", "v", "out", "grad_out", "grad_q", "marks", "sinks", "items")
            of_keys = ("q", "k", "v", "grad_out", "grad_k", "grad_v", "marks", "items")
            kinds = {"marks": "*fp32", "items": "*i32"}
            warps, stages, floats = attention_backward.backward_warps(max(key, value)), attention_backward.STAGES, ("scaling", "softcap")
            for kernel, names, more in ((query_gradient_kernel, named, {"SINKS": True}), (key_gradient_kernel, of_keys, {})):
                pointers = {name: kinds.get(name, f"*{NAMES[dtype]}") for name in names}
                yield Variant(kernel, pointers, constants | more, warps, stages, floats)


def combines() -> Iterator[Variant]:
    for (_, value), dtypes in WIDTHS.items():
        for dtype in dtypes:
            pointers = {"sums": "*fp32", "marks": "*fp32", "sinks": f"*{NAMES[dtype]}", "out": f"*{NAMES[dtype]}", "rows": "*i32"}
            yield Variant(combine_kernel, pointers, combine_constants(value, True), 1, 3)


SPILLED_BYTES = {attentions: 32, attention_gradients: 32}
"""At most eight registers."""


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("variants", [shrinks, expands, gradient_sums, attentions, combines, attention_gradients])
def test_every_variant_fits_the_chip_and_spills_nothing(variants: Callable[[], Iterator[Variant]], arch: int) -> None:
    found = [fault for variant in variants() for fault in faults(variant, arch, SPILLED_BYTES.get(variants, 0))]
    assert not found, "\n".join(found)
