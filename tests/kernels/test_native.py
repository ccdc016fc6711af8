"""The C++ kernels compute what torch's operators do; where they cannot be had, torch's operators do it."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mint_stream.kernels import Segments, SiteWeights, SliceWeights, Stack, add_lora_slices, cpu, native, native_library, reference
from mint_stream.kernels.native_library import SOURCE, loaded
from mint_stream.kernels.rowwise import gated, rms_norm, rotated

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ on this machine")
kinds = pytest.mark.parametrize(
    ("kind", "within"),
    [
        pytest.param(torch.float32, 1e-5, marks=needs_compiler),
        pytest.param(torch.bfloat16, 2e-2, marks=needs_compiler),
        (torch.float64, 1e-9),
    ],
)
"""The first two go through the kernels, the last through torch."""
widths = pytest.mark.parametrize("width", [2, 10, 16, 24, 576])


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def _close(got: Tensor, expected: Tensor, within: float) -> None:
    torch.testing.assert_close(got.double(), expected, atol=within, rtol=within)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@needs_compiler
def test_the_kernels_take_rows_in_one_piece_on_the_cpu_without_gradients_and_nothing_else() -> None:
    x = torch.randn(4, 8)
    assert native.takes(x) and native.takes(x.bfloat16(), x.bfloat16()) and native.takes(x[:, 2:6])
    assert not native.takes(x.double()) and not native.takes(x, x.bfloat16()) and not native.takes(x.t()) and not native.takes(x.to("meta"))
    with torch.enable_grad():
        assert not native.takes(x)


@kinds
@widths
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_norms_and_gates_are_torchs(kind: torch.dtype, within: float, width: int, rows: int) -> None:
    whole, weight = _random(rows, 2 * width).to(kind), _random(width).to(kind)
    x = whole[:, 1 : 1 + width]  # rows that do not follow each other
    expected = functional.rms_norm(x.double(), (width,), weight.double(), 1e-5)
    _close(rms_norm(x, weight, 1e-5), expected, within)
    gate, up = whole.double().split(width, dim=1)
    _close(gated(whole), functional.silu(gate) * up, within)


def test_a_gate_is_right_far_from_zero() -> None:
    gate = torch.tensor([[-1e30, -200.0, -88.0, -1e-3, 0.0, 1e-3, 88.0, 200.0, 1e30]])
    got = gated(torch.cat([gate, torch.ones_like(gate)], dim=1))
    torch.testing.assert_close(got, functional.silu(gate), atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_none_in_its_row_and_touches_no_other(kind: torch.dtype) -> None:
    x = torch.randn(3, 64).to(kind)
    for odd in (torch.nan, torch.inf):
        broken = x.clone()
        broken[1, 5] = odd
        for found, whole in ((rms_norm(broken, x[0], 1e-5), rms_norm(x, x[0], 1e-5)), (gated(broken), gated(x))):
            assert not found[1].isfinite().all() and torch.equal(found[::2], whole[::2])


@kinds
@pytest.mark.parametrize("width", [4, 16, 64, 80])
def test_positions_turn_queries_and_keys_and_leave_values(kind: torch.dtype, within: float, width: int) -> None:
    qkv, angles = _random(5, 4, width).to(kind), _random(5, width // 2).repeat(1, 2)
    cos, sin = angles.cos().to(kind), angles.sin().to(kind)
    a, b = qkv[:, :3].double().chunk(2, dim=2)
    c, s = (side[:, None, : width // 2].double() for side in (cos, sin))
    expected, values = torch.cat([a * c - b * s, b * c + a * s], dim=2), qkv[:, 3].clone()
    _close(rotated(qkv[:, :3], cos, sin), expected, within)
    assert torch.equal(qkv[:, 3], values)


def _stacks(kind: torch.dtype, inputs: int, shapes: tuple[tuple[int, int], ...]) -> SliceWeights:
    """Four adapters in a stack for each (rank, out)."""
    return SliceWeights(
        [SiteWeights(stacks=(Stack(0, _random(4, rank, inputs).to(kind) / 4, _random(4, rank, out).to(kind)),)) for rank, out in shapes]
    )


@kinds
@pytest.mark.parametrize("inputs", [3, 16, 200])
def test_short_and_tall_segments_get_their_adapters_from_whoever_computes_them(kind: torch.dtype, within: float, inputs: int) -> None:
    segments = Segments.of_slots([-1] * 2 + [0] * 5 + [1] * 30 + [-1] + [2] + [3] * cpu.TALL_ROWS)
    weights = _stacks(kind, inputs, ((8, 40), (3, 200)))
    x, y = _random(segments.rows, inputs).to(kind), _random(segments.rows, 240).to(kind)
    expected = [part.double() for part in y.split([40, 200], dim=1)]
    for out, site in zip(expected, weights.sites, strict=True):
        assert site is not None
        double = SiteWeights(stacks=tuple(Stack(0, stack.A.double(), stack.Bt.double()) for stack in site.stacks))
        reference.add_lora(x.double(), out, segments, double)
    add_lora_slices(x, y.split([40, 200], dim=1), segments, weights)
    _close(y, torch.cat(expected, dim=1), 10 * within)
    share = cpu._share(segments, weights.stacks[0], by_kernel=kind != torch.float64)
    assert (share.short is None) == (kind == torch.float64)
    assert share.short is None or share.short.tolist() == [[2, 7, 0], [38, 39, 2]]


@needs_compiler
def test_a_rows_bits_do_not_depend_on_its_company() -> None:
    weights, x = _stacks(torch.float32, 100, ((8, 40),)), torch.randn(12, 100)
    whole, alone = torch.zeros(12, 40), torch.zeros(1, 40)
    add_lora_slices(x, (whole,), Segments.of_slots([0] * 3 + [1] * 9), weights)
    add_lora_slices(x[7:8].clone(), (alone,), Segments.of_slots([1]), weights)
    assert torch.equal(whole[7:8], alone)


@needs_compiler
def test_adapters_that_are_not_each_in_one_piece_are_torchs() -> None:
    sliced = SliceWeights([SiteWeights(stacks=(Stack(0, torch.randn(2, 8, 32)[..., ::2], torch.randn(2, 8, 4)),))])
    assert sliced.stacks[0].addresses is None
    x, y = torch.randn(2, 16), torch.zeros(2, 4)
    assert not native.takes_lora(x, (y,), sliced.stacks[0])


@needs_compiler
def test_the_library_is_compiled_once_and_elsewhere_where_its_folder_cannot_be_written(tmp_path: Path) -> None:
    compiler, source = shutil.which("g++"), tmp_path / "one.cpp"
    assert compiler is not None
    source.write_text('extern "C" int one() { return 1; }\n')
    first = native_library.compiled(compiler, tmp_path / "made", source)
    assert first is not None and first.parent == tmp_path / "made" and list(first.parent.iterdir()) == [first]
    stamp = first.stat().st_mtime_ns
    assert native_library.compiled(compiler, tmp_path / "made", source) == first and first.stat().st_mtime_ns == stamp
    elsewhere = native_library.compiled(compiler, source / "no folder", source)
    assert elsewhere is not None and elsewhere.exists() and elsewhere.name == first.name
    shutil.rmtree(elsewhere.parent)


@needs_compiler
def test_a_compiler_that_refuses_the_source_is_heard_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiler, source = shutil.which("g++"), tmp_path / "broken.cpp"
    assert compiler is not None
    source.write_text("this is no C++\n")
    with caplog.at_level(logging.WARNING):
        assert native_library.compiled(compiler, tmp_path / "made", source) is None
    assert "does not compile broken.cpp" in caplog.text and not list((tmp_path / "made").iterdir())


def test_a_machine_without_a_compiler_has_no_kernels_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.WARNING):
        assert native_library._library.__wrapped__() is None
    assert "passes on this CPU take torch's operators" in caplog.text


def test_a_library_that_cannot_be_loaded_or_made_is_done_without_and_heard_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo no library > "$2"\n')
    compiler.chmod(0o755)
    assert loaded(str(compiler), tmp_path / "made") is None
    compiler.unlink()
    assert loaded(str(compiler), tmp_path / "again") is None
    assert caplog.text.count(SOURCE.name) == 2
