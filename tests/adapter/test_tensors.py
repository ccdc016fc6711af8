"""A safetensors file is read as safetensors reads it, and any table that is not one is refused in a sentence."""

import json
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.adapter.tensors import DTYPES, all_finite, read_tensors, write_tensors
from mint_stream.errors import InvalidAdapter

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
TABLES = st.dictionaries(st.text(min_size=1, max_size=5), st.tuples(SHAPES, st.sampled_from(sorted(DTYPES))), max_size=8)


def file_of(table: object, payload: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + payload


@settings(deadline=None)
@given(TABLES)
def test_it_reads_what_safetensors_wrote(table: dict[str, tuple[tuple[int, ...], str]]) -> None:
    wanted = {name: torch.arange(1, 1 + torch.Size(shape).numel()).view(shape).to(DTYPES[dtype]) for name, (shape, dtype) in table.items()}
    found = read_tensors(safetensors.torch.save(wanted, metadata={"format": "pt"}))
    assert found.finite and found.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), SHAPES, max_size=8))
def test_it_writes_the_bytes_that_safetensors_writes(table: dict[str, tuple[int, ...]]) -> None:
    numbers = torch.arange(1.0, 2000.0)
    views = {name: numbers[place:][: torch.Size(shape).numel()].view(shape) for place, (name, shape) in enumerate(table.items())}
    assert write_tensors(views) == safetensors.torch.save({name: tensor.clone() for name, tensor in views.items()})


def test_what_is_not_fp32_is_not_written() -> None:
    with pytest.raises(ValueError, match=r"x is torch\.bfloat16"):
        write_tensors({"x": torch.ones(2, dtype=torch.bfloat16)})


def test_a_payload_that_begins_where_its_numbers_may_not_is_moved() -> None:
    table = {"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [3, 7]}}
    found = read_tensors(file_of(table, b"\1\2\3" + struct.pack("<f", 1.5)))
    assert found.tensors["b"].tolist() == [1.5] and found.tensors["a"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_that_is_not_finite_is_seen_and_large_ones_are_none(bad: float, dtype: torch.dtype) -> None:
    tensors = {"x": torch.ones(100, dtype=dtype), "y": torch.ones(7, dtype=dtype)}
    tensors["y"][3] = bad
    assert not read_tensors(safetensors.torch.save(tensors)).finite
    assert all_finite(torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)), "their sum is too large, none of them is"


LINE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "would end at byte 8 of 0"),
        (b"\xff" * 20, "would end at byte"),
        (file_of({"x": LINE}, bytes(8))[:-1], "end at byte 8 of 7"),
        (file_of({"x": LINE}, bytes(9)), "end at byte 8 of 9"),
        (file_of({"x": LINE | {"data_offsets": [4, 12]}}, bytes(12)), "x begins at byte 4"),
        (file_of({"x": LINE, "y": LINE}, bytes(8)), "y begins at byte 0"),
        (file_of({"x": LINE | {"shape": [3]}}, bytes(8)), "x has 8 bytes for F32"),
        (file_of({"x": LINE | {"shape": [-2], "data_offsets": [8, 0]}}, bytes(8)), "no whole number"),
        (file_of({"x": LINE | {"shape": [2.0]}}, bytes(8)), "no whole number"),
        (file_of({"x": LINE | {"dtype": "F99"}}, bytes(8)), "dtype 'F99'"),
        (file_of({"x": LINE | {"dtype": ["F32"]}}, bytes(8)), "malformed: TypeError"),
        (file_of({"x": {"dtype": "F32"}}), "malformed: KeyError"),
        (file_of({"x": 3}), "malformed: TypeError"),
        (file_of([1]), "malformed: AttributeError"),
        (file_of(b"\xff{"), "malformed: "),
        (file_of(b"[" * 100_000), "malformed: RecursionError"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(InvalidAdapter, match=why):
        read_tensors(content)
