"""`bench kernels`: what it measures, and that it reports nothing it has not checked."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mint_stream.bench.kernels import check, plain_torch, sets_past_cache
from mint_stream.bench.lora_cases import Case, Tensors, layer, popular, sweep
from mint_stream.bench.wrong import WrongResult
from mint_stream.cli.main import app
from mint_stream.kernels import Segments, SiteWeights

CASE = Case(64, (32, 48), 4, 20, 3, "zipf")


def test_a_right_kernel_passes_the_check_and_its_tensors_stay_as_they_were() -> None:
    tensors = Tensors.of(CASE, torch.float32, "cpu")
    before = [y.clone() for y, _ in tensors.slices]
    check("torch", [CASE], [tensors], plain_torch)
    assert all(torch.equal(y, old) for (y, _), old in zip(tensors.slices, before, strict=True))


@pytest.mark.parametrize("error", ["row", "scale", "nothing"])
def test_a_wrong_kernel_is_refused(error: str) -> None:
    def wrong(x: Tensor, slices: Sequence[tuple[Tensor, SiteWeights]], segments: Segments) -> None:
        if error != "nothing":
            plain_torch(x.roll(1, 0) if error == "row" else x * 1.1, slices, segments)

    with pytest.raises(WrongResult, match="there is no time to report"):
        check("wrong", [CASE], [Tensors.of(CASE, torch.float32, "cpu")], wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_cuda_device_it_says_so_in_one_sentence_and_fails() -> None:
    found = CliRunner().invoke(app, ["bench", "kernels", "--json"])
    assert found.exit_code == 1 and found.stdout == ""
    assert found.stderr.startswith("error invalid-request: `bench kernels` needs a CUDA device") and found.stderr.count("\n") == 1


def test_the_sweep_is_the_one_of_the_targets() -> None:
    cases = list(sweep())
    assert len(set(cases)) == len(cases)
    assert {case.popularity for case in cases} == {"identical", "uniform", "zipf", "distinct"}
    for name, low, high in (("inputs", 2048, 8192), ("rank", 1, 128), ("rows", 1, 8192), ("adapters", 1, 256)):
        values = {getattr(case, name) for case in cases}
        assert min(values) == low and max(values) >= high
    assert all(case.adapters <= case.rows for case in cases) and any(case.rank % 2 for case in cases if case.rank > 1)


def test_a_layer_of_an_8b_model_moves_its_weights_rows_and_narrow_rows_once() -> None:
    per_adapter = 32 * (3 * 4096 + 4096 + 2 * 1024 + 4096 + 4096 + 2 * 4096 + 2 * 14336 + 14336 + 4096)
    per_row = 3 * 4096 + 14336 + 4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096 + 7 * 32
    assert sum(case.ideal_bytes(2) for case in layer(32, 8)) == 2 * 8 * (per_adapter + per_row)


def test_rows_are_shared_out_by_popularity() -> None:
    assert popular("identical", 3, 8) == [0, 0, 0] and popular("distinct", 3, 8) == [0, 1, 2]
    assert popular("uniform", 4, 2) == [0, 0, 1, 1]
    zipf = popular("zipf", 110, 10)
    assert [zipf.count(slot) for slot in (0, 1, 9)] == [38, 18, 4]


def test_buffers_are_rotated_past_the_cache() -> None:
    assert sets_past_cache(10, 100) == 30 and sets_past_cache(1000, 100) == 2 and sets_past_cache(1, 10**9) == 64
