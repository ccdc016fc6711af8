"""Every variant that the dispatch can choose compiles for every architecture, fits its shared memory and registers, and spills nothing."""

import os
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("triton interprets in this process", allow_module_level=True)

from mint_stream.kernels import gradients
from mint_stream.kernels.expand import STAGES, expand_constants, expand_kernel
from mint_stream.kernels.gradients import gradient_constants, gradient_kernel
from mint_stream.kernels.shrink import shrink_constants, shrink_kernel
from mint_stream.kernels.tiles import ROWS, every_tile
from tests.kernels.compiling import NAMES, SHARED_BYTES, Variant, faults


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


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("variants", [shrinks, expands, gradient_sums])
def test_every_variant_fits_the_chip_and_spills_nothing(variants: Callable[[], Iterator[Variant]], arch: int) -> None:
    found = [fault for variant in variants() for fault in faults(variant, arch)]
    assert not found, "\n".join(found)
